"""The training of one arm with one seed, its calibration and its writing.

A run does them for all its arms, a sweep for its cells. If activations come a window at a time, all arms train on a
window before the next replaces it. Between two windows an arm exists only as its checkpoint, so a run that was killed
continues with exactly the same numbers.
"""

import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

import metasae
from metasae.arms.folder import Arm
from metasae.arms.l0 import missed_line
from metasae.arms.source import Source
from metasae.data.cache.cache import ActivationCache
from metasae.data.cache.rolling import RollingHarvest, TrainingWindow, open_window, training_windows
from metasae.data.cache.stream import Stream
from metasae.data.planted.planted_cache import PlantedCache
from metasae.data.split import Rows, Split
from metasae.errors import UserError
from metasae.measures.firing.calibrate import calibrate
from metasae.measures.truth.spikes import Spikes
from metasae.progress.progress import SILENT, Progress, SharedTask
from metasae.progress.stop import StopRequest
from metasae.ranks.lanes import on_one_core
from metasae.ranks.ranks import ALONE, Ranks
from metasae.recipe.recipe import Recipe
from metasae.sae.sae import SAE, token_normalise
from metasae.train.loop import train
from metasae.train.sharded import checkpoint
from metasae.train.sharded.trainer import trainer_of
from metasae.train.start import start_from

# Pre-activations of a batch (batch x n). Below this, one core is nearly as fast as two, which wait for each other at
# every small product.
SMALL_STEP = 1 << 21
# Rows for the mean that b_dec starts from, if inputs are normalised per token.
_MEAN_ROWS = 65_536


@dataclass(frozen=True)
class Turn:
    """The data an arm trains on: the whole training split, or one window of it (`metasae.data.cache.rolling`).

    scaled_by: the data that the input scale is computed from, the split itself or the first window. window: number of
    the window; it sets the order together with the seed. first: number of the first batch. stop: the primary step at
    which the turn ends, None if it ends with the training.
    """

    split: Split
    scaled_by: Split | TrainingWindow
    window: int | None = None
    first: int = 0
    stop: int | None = None


def train_arm(
    recipe: Recipe,
    source: Source,
    cache: ActivationCache | PlantedCache,
    arm: Arm,
    progress: Progress | SharedTask,
    title: str,
    stop: StopRequest,
    turn: Turn | None = None,
) -> float:
    """Trains an arm, from its checkpoint if it has one, calibrates and writes it; returns the seconds of its steps.

    All ranks of the source call this together, and the first writes. turn: the data it trains on, by default the
    cache's training split; if the turn ends before the training does, the arm is left with its checkpoint. Raises
    Interrupted after a signal, when the state is saved; UserError for a loss that is not finite and for a full disk.
    """
    training, ranks = cache.split("train") if turn is None else turn.split, source.ranks
    turn = turn or Turn(training, training)
    turn = with_spikes(turn, source.spikes(arm.seed, None if turn.window else training))
    with cores_for(recipe, source.device):
        scale = input_scale(turn.scaled_by, recipe.sae.normalize)
        start = start_from(source.init.sae(), scale) if recipe.train.init else None
        b_dec = initial_b_dec(turn.split, scale, recipe) if start is None else start.b_dec_D
        trainer = trainer_of(recipe, arm.name, arm.seed, b_dec, source.device, ranks, start)
        order = arm.seed if turn.window is None else arm.seed * 1_000_003 + turn.window
        with (
            Stream(
                turn.split,
                recipe.train.batch,
                order,
                scale,
                ahead=trainer.device.type != "cpu",
                first=turn.first,
                ranks=ranks,
                device=trainer.device,
            ) as stream,
            progress.task(title, recipe.train.tokens) as task,
        ):
            start = time.perf_counter()
            done = train(trainer, stream, arm.folder, task, stop, checkpoints=checkpoint, until=turn.stop)
            seconds = time.perf_counter() - start
        if not done:
            return seconds
        # the state is saved, so a signal may stop this at once
        with stop.at_once():
            saes = trainer.export(scale, _metadata(recipe, source, cache, arm))
            lines = save_trained(saes, recipe, cache.split("calibration"), arm.folder, ranks)
        for line in lines:
            source.progress.say(f"{arm.label}: {line}")
        if ranks.first:
            shutil.rmtree(arm.folder / "checkpoints", ignore_errors=True)
        ranks.wait()
    return seconds


def with_spikes(turn: Turn, spikes: Spikes | None) -> Turn:
    """The turn with spike-ins added to its activations, and to the data that the input scale is computed from."""
    if spikes is None:
        return turn
    split = spikes.spiked(turn.split)
    if turn.scaled_by is turn.split:
        return replace(turn, split=split, scaled_by=split)
    first = replace(turn.scaled_by, mean_square=turn.scaled_by.mean_square + spikes.added_square)
    return replace(turn, split=split, scaled_by=first)


def train_by_windows(
    recipe: Recipe,
    source: Source,
    cache: ActivationCache,
    arms: Sequence[Arm],
    done: Callable[..., None],
    stop: StopRequest,
) -> None:
    """Trains all arms to their end, window by window.

    cache: holds the other splits. done: called with `train ARM-sSEED` and its seconds when an arm ends. All ranks of
    the source call this; the first harvests. Raises Interrupted after a signal, when the state is saved.
    """
    total, ranks = -(-recipe.train.tokens // recipe.train.batch), source.ranks
    seconds = dict.fromkeys(arms, 0.0)
    rolling = None
    if ranks.first and not all(arm.is_trained for arm in arms):
        rolling = RollingHarvest(
            source.host, recipe.text, recipe.harvest, recipe.train.batch, source.windows, cache.longest, source.progress
        )
    try:
        number = 0
        while left := [arm for arm in arms if not ranks.agreed(arm.is_trained)]:
            known = training_windows(source.windows)
            unknown = number >= len(known)
            if ranks.agreed(unknown or any(_wants(arm.folder, known[number], total) for arm in left)):
                with stop.at_once():
                    if rolling is not None and rolling.window(number)[0].stop < total:
                        rolling.ahead(number + 1)
                    ranks.wait()
                    window, split = open_window(source.windows, number, cache.longest)
                turn = Turn(split, training_windows(source.windows)[0], number, window.first, window.stop)
                for arm in left:
                    if not ranks.agreed(_wants(arm.folder, window, total)):
                        continue
                    title = f"training {arm.name}, seed {arm.seed}, on window {number}"
                    seconds[arm] += train_arm(recipe, source, cache, arm, source.progress, title, stop, turn)
                    if arm.is_trained:
                        done(f"train {arm.label}", seconds[arm])
                del split, turn
            if rolling is not None:
                rolling.drop(number)
            number += 1
    finally:
        if rolling is not None:
            rolling.close()


def _wants(folder: Path, window: TrainingWindow, total: int) -> bool:
    """Whether an unfinished arm has steps to do in this window. After the last batch, steps of its meta SAE may be
    left.
    """
    return checkpoint.steps(folder) < window.stop or window.stop >= total


def trains_on_one_core(recipe: Recipe, device: str) -> bool:
    """Whether a training step runs on one core. The same for all arms of a recipe, alone or side by side, so that their
    numbers agree to the bit.
    """
    return device == "cpu" and recipe.train.batch * recipe.sae.n <= SMALL_STEP


def cores_for(recipe: Recipe, device: str) -> AbstractContextManager:
    """A context in which torch uses as many cores as a training step of the recipe does."""
    return on_one_core() if trains_on_one_core(recipe, device) else nullcontext()


def save_trained(
    saes: dict[str, SAE],
    recipe: Recipe,
    calibration: Split,
    folder: Path,
    ranks: Ranks = ALONE,
    progress: Progress = SILENT,
) -> list[str]:
    """Calibrates the SAEs of an arm and writes them, the primary last, as its folder marks the arm as trained. Returns
    a line for each SAE whose L0 misses the k of the recipe; on the first rank only.

    saes: {"primary": ..., "meta": ...} on the first rank, {} on the others.
    """
    lines = []
    if "meta" in saes:
        own = calibrate(saes["meta"], Rows(saes["primary"].W_dec))
        lines += missed_line(own.l0, own.k, own.rule, "meta", recipe.meta)
        saes["meta"].save(folder / "meta")
    primary = _on_all(saes.get("primary"), ranks)
    rule, batch = recipe.measure.threshold, recipe.train.batch
    calibrated = calibrate(primary, calibration, batch, progress, rule, ranks)
    if ranks.first:
        primary.config.metadata["calibration"] = asdict(calibrated)
        primary.save(folder / "primary")
        lines += missed_line(calibrated.l0, calibrated.k, calibrated.rule, "sae", recipe.sae)
    return lines


def _on_all(sae: SAE | None, ranks: Ranks) -> SAE:
    """Copies the first rank's SAE, which is on the processor, to every rank."""
    facts = (sae.config, sae.threshold is not None, sae.offset is not None) if ranks.first else None
    config, has_threshold, has_offset = ranks.from_first(facts)
    if not ranks.first:
        sae = SAE(config)
        sae.threshold = torch.zeros(config.d_sae) if has_threshold else None
        sae.offset = torch.zeros(config.d_sae) if has_offset else None
    # W_enc as it lies in memory
    for tensor in (
        sae.W_enc.data.t(),
        sae.b_enc.data,
        sae.W_dec.data,
        sae.b_dec.data,
        *([sae.threshold] if has_threshold else []),
        *([sae.offset] if has_offset else []),
    ):
        ranks.broadcast_(tensor)
    return sae


def _metadata(recipe: Recipe, source: Source, cache: ActivationCache | PlantedCache, arm: Arm) -> dict:
    return {
        **_place(recipe, source),
        "metasae": {
            "version": metasae.__version__,
            "arm": arm.name,
            "seed": arm.seed,
            "data_fingerprint": cache.fingerprint,
            **_spike_note(recipe, arm.seed),
            **({"gguf": asdict(source.host.gguf)} if recipe.reads_text and source.host.gguf else {}),
            "recipe": recipe.model_dump(mode="json"),
        },
    }


def _place(recipe: Recipe, source: Source) -> dict:
    """The model, hook point and text of the activations, by SAELens's names. For given activations only what the recipe
    says of a model.
    """
    place = {"hook_name": recipe.hook.point, "model_name": recipe.model.name or recipe.model.path}
    if source.given:
        return {**(place if recipe.model.source else {}), "dataset_path": recipe.text.source}
    return place | {
        "dataset_path": recipe.text.source,
        "context_size": recipe.text.context,
        "prepend_bos": not source.planted and source.host.bos_id is not None,
    }


def _spike_note(recipe: Recipe, seed: int) -> dict:
    """The note on spike-ins in the metadata of an SAE that was trained with them; exports keep it."""
    if not recipe.spikes.n:
        return {}
    said = (
        "known features were added to the training activations; some latents represent these, not features of the model"
    )
    return {"spikes": {"n": recipe.spikes.n, "draw": recipe.spikes.seed + seed, "note": said}}


def input_scale(split: Split | TrainingWindow, normalize: str) -> float:
    """The factor that activations are multiplied by before training: with 'global' the s for which mean ||s x||^2 = d,
    else 1. Raises UserError if all activations are zero.
    """
    if normalize != "global":
        return 1.0
    if split.mean_square <= 0:
        raise UserError("all activations of the training split are zero; check the hook point")
    return (split.d / split.mean_square) ** 0.5


def initial_b_dec(split: Split, scale: float, recipe: Recipe) -> Tensor:
    """The first b_dec, fp32 [d], in the units the SAE is trained in: zero, or the mean input."""
    if recipe.sae.b_dec_init == "zero":
        return torch.zeros(split.d)
    if recipe.sae.normalize == "token":
        rows = torch.linspace(0, split.n_tokens - 1, min(_MEAN_ROWS, split.n_tokens)).long()
        return token_normalise(split.rows(rows).float())[0].mean(0)
    return (split.mean * scale).float()
