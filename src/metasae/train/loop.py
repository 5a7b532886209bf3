"""The training loop of one arm: turns, metrics, checkpoints, a clean stop."""

import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from metasae.errors import Interrupted, UserError
from metasae.progress.progress import Task
from metasae.progress.stop import StopRequest
from metasae.train import checkpoint
from metasae.train.trainer import Trainer

# Primary steps whose numbers make one line of metrics.jsonl (their mean); reading a number waits for the device.
LOG_EVERY = 10


class Batches(Protocol):
    """A source of activations with a cursor: what `metasae.data.cache.stream.Stream` is."""

    def next(self) -> Tensor: ...
    def seek(self, position: int) -> None: ...


class Checkpoints(Protocol):
    """Saves and loads a trainer's whole state: the module `metasae.train.checkpoint`, or what spreads it over
    processes.
    """

    def save(self, trainer: Trainer, pending: list[dict[str, float]], metrics_bytes: int, folder: Path) -> None: ...
    def load(self, trainer: Trainer, folder: Path) -> tuple[list[dict[str, float]], int] | None: ...


def train(
    trainer: Trainer,
    batches: Batches,
    folder: Path,
    task: Task,
    stop: StopRequest | None = None,
    after_step: Callable[[str], None] = lambda action: None,
    checkpoints: Checkpoints = checkpoint,
    until: int | None = None,
) -> bool:
    """Trains to the end, from the checkpoint in `folder` where there is one. Writes metrics.jsonl and checkpoints
    there, one at the end too.

    after_step: called after every step with 'primary' or 'meta'. until: stops, with all saved, where the next primary
    step would be one more than these. Returns whether the end was reached. Raises Interrupted after saving when `stop`
    was asked for; UserError when a loss is no longer finite.
    """
    log = MetricsLog(folder / "metrics.jsonl", trainer, checkpoints)
    resumed = checkpoints.load(trainer, folder)
    log.resume(*(resumed or ([], 0)))
    batches.seek(trainer.done.primary)
    task.skip(min(trainer.done.primary * trainer.recipe.train.batch, trainer.recipe.train.tokens))
    unsaved = False
    while action := trainer.next_action():
        if action == "primary":
            if until is not None and trainer.done.primary >= until:
                log.save(folder)
                return False
            number = trainer.done.primary + 1
            logging = number % LOG_EVERY == 0 or number == trainer.total_primary
            x = batches.next()
            losses, numbers = trainer.primary_step(x, with_penalty=logging)
            log.primary({"loss": losses.total, "l2": losses.l2, "aux": losses.aux, **numbers}, losses.penalty)
            task.advance(x.shape[0], **log.live())
        else:
            losses = trainer.meta_step()
            log.meta({"meta_loss": losses.total, "meta_l2": losses.l2})
        due = action == "primary" and trainer.done.primary % trainer.recipe.train.checkpoint_every == 0
        stopping = trainer.agree(stop is not None and stop.asked)
        unsaved = not (due or stopping)
        if not unsaved:
            log.save(folder)
        after_step(action)
        if stopping:
            raise Interrupted(f"stopped at step {trainer.done.primary}; saved")
    log.finish()
    if unsaved:
        # what is interrupted from here on trains no step again
        log.save(folder)
    return True


class MetricsLog:
    """Collects each step's numbers as tensors and writes their means, a line per LOG_EVERY primary steps.

    `pending` holds the open window; with the length of the file it is all a resumed run needs to write the same bytes.
    Of several processes all collect, and one writes.
    """

    def __init__(self, path: Path, trainer: Trainer, checkpoints: Checkpoints = checkpoint):
        self.path, self.trainer, self.checkpoints = path, trainer, checkpoints
        self.window: list[dict[str, Tensor]] = []
        self.pending: dict[str, Tensor] = {}
        self.last: dict[str, float] = {}

    def resume(self, pending: list[dict[str, float]], n_bytes: int) -> None:
        """Goes on after `n_bytes` of the file: what a killed run wrote beyond its checkpoint is cut off and written
        again.
        """
        if self.trainer.leads:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.touch()
            if self.path.stat().st_size < n_bytes:
                raise UserError(
                    f"{self.path} is shorter than its checkpoint says; delete the arm's folder to train it again"
                )
            os.truncate(self.path, n_bytes)
        *window, late = pending or [{}]
        # with those of the steps to come, which lie where the trainer works
        self.window, self.pending = [self._as_tensors(numbers) for numbers in window], self._as_tensors(late)

    def _as_tensors(self, numbers: dict[str, float]) -> dict[str, Tensor]:
        return {key: torch.tensor(value, device=self.trainer.device) for key, value in numbers.items()}

    def primary(self, numbers: dict[str, Tensor], penalty: Tensor) -> None:
        """The penalty is that of the window's last step: where lambda2 = 0 it is only worked out then."""
        self.window.append(numbers)
        if self.trainer.meta and not self.trainer.rules.after:
            self.pending["penalty"] = penalty
        if len(self.window) == LOG_EVERY:
            self._write()

    def meta(self, numbers: dict[str, Tensor]) -> None:
        """The latest meta step's numbers go out with the next line."""
        self.pending.update(numbers)

    def live(self) -> dict[str, float]:
        return {key: self.last[key] for key in ("l2", "fvu", "penalty", "dead") if key in self.last}

    def save(self, folder: Path) -> None:
        floats = [{key: float(value) for key, value in numbers.items()} for numbers in [*self.window, self.pending]]
        self.checkpoints.save(self.trainer, floats, self.path.stat().st_size if self.trainer.leads else 0, folder)

    def finish(self) -> None:
        if self.window:
            self._write()

    def _write(self) -> None:
        # a penalty that is worked out on every c-th step has numbers on those only
        keys = dict.fromkeys(key for numbers in self.window for key in numbers)
        means = {
            key: float(torch.stack([numbers[key] for numbers in self.window if key in numbers]).mean()) for key in keys
        }
        latest = {key: float(value) for key, value in self.pending.items()}
        if not all(math.isfinite(value) for value in (*means.values(), *latest.values())):
            raise UserError(
                f"the loss is no longer finite at step {self.trainer.done.primary}; try a smaller train.lr or "
                "train.clip"
            )
        done = self.trainer.done
        line = {
            "step": done.primary,
            "meta_step": done.meta,
            "tokens": done.primary * self.trainer.recipe.train.batch,
            **means,
            **latest,
        }
        if self.trainer.leads:
            with self.path.open("a") as file:
                file.write(json.dumps(line) + "\n")
        self.window, self.pending, self.last = [], {}, line
