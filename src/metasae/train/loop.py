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

# Primary steps per line of metrics.jsonl, which has the means over them. Reading a number waits for the device.
LOG_EVERY = 10


class Batches(Protocol):
    """A source of activations with a position, as `metasae.data.cache.stream.Stream`."""

    def next(self) -> Tensor: ...
    def seek(self, position: int) -> None: ...


class Checkpoints(Protocol):
    """Saves and loads a trainer's whole state: the module `metasae.train.checkpoint`, or
    `metasae.train.sharded.checkpoint` for several processes.
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
    """Trains to the end, from the checkpoint in `folder` if there is one. Writes metrics.jsonl and checkpoints to
    `folder`, the last checkpoint at the end.

    after_step: called after every step with 'primary' or 'meta'. until: saves and stops after this many primary steps.
    Returns whether the end of the training was reached. Raises Interrupted, after saving, when `stop` is asked for;
    UserError when a loss is no longer finite.
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
        # a run that is interrupted after this repeats no step
        log.save(folder)
    return True


class MetricsLog:
    """Collects each step's numbers as tensors and writes their means, a line per LOG_EVERY primary steps.

    `window` and `pending` hold the steps that have no line yet; with these and the length of the file, a resumed run
    writes the same bytes. All processes collect the numbers, and the first one writes them.
    """

    def __init__(self, path: Path, trainer: Trainer, checkpoints: Checkpoints = checkpoint):
        self.path, self.trainer, self.checkpoints = path, trainer, checkpoints
        self.window: list[dict[str, Tensor]] = []
        self.pending: dict[str, Tensor] = {}
        self.last: dict[str, float] = {}

    def resume(self, pending: list[dict[str, float]], n_bytes: int) -> None:
        """Continues after `n_bytes` of the file. Lines that a killed run wrote after its checkpoint are cut off, and
        the resumed run writes them again.
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
        # on the trainer's device, as the numbers of the next steps are
        self.window, self.pending = [self._as_tensors(numbers) for numbers in window], self._as_tensors(late)

    def _as_tensors(self, numbers: dict[str, float]) -> dict[str, Tensor]:
        return {key: torch.tensor(value, device=self.trainer.device) for key, value in numbers.items()}

    def primary(self, numbers: dict[str, Tensor], penalty: Tensor) -> None:
        """The line has the penalty of its last step, as with lambda2 = 0 the penalty is computed on that step only."""
        self.window.append(numbers)
        if self.trainer.meta and not self.trainer.rules.after:
            self.pending["penalty"] = penalty
        if len(self.window) == LOG_EVERY:
            self._write()

    def meta(self, numbers: dict[str, Tensor]) -> None:
        """The next line has the numbers of the latest meta step."""
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
        # a penalty that is computed on every c-th step has no number on the others
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
