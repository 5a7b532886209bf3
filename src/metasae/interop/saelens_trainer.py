"""Trains with metasae's objective on activations from a SAELens data provider: `train_on(provider, recipe, ...)`.

A SAELens DataProvider is any iterator of activations [B, d]; its ActivationsStore is one. It takes the place of
metasae's stream, and all else is metasae's: the same steps in the same order, so equal batches give equal weights and
metrics, to the bit. A training class registered with SAELens could not do this: SAELens' trainer has one Adam and one
clip over all parameters, no turns between a primary and a meta SAE, and does not keep decoder rows at unit length.
"""

import shutil
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import metasae
from metasae.arms.train import cores_for, initial_b_dec, input_scale, save_trained
from metasae.data.split import Rows, Split
from metasae.errors import UserError, nearest
from metasae.interop import checked
from metasae.progress.progress import Progress
from metasae.progress.stop import StopRequest
from metasae.recipe.recipe import Recipe
from metasae.recipe.registry import ARMS
from metasae.sae.layout import CONFIG
from metasae.sae.sae import SAE
from metasae.train.loop import train
from metasae.train.trainer import Trainer

# Rows from which the input scale and the first b_dec are computed, where no sample is given.
SAMPLE_ROWS = 16_384


def train_on(
    provider: Iterator[Tensor],
    recipe: str | Path | dict | Recipe,
    arm: str,
    seed: int,
    folder: str | Path,
    *,
    sample: Split | None = None,
    calibration: Split | None = None,
    metadata: dict[str, Any] | None = None,
    device: str = "cpu",
    show: bool = True,
) -> dict[str, SAE]:
    """Trains one arm on a provider's batches; returns {"primary": SAE, "meta": SAE}, as saved under `folder`.

    An arm without a meta SAE has no "meta".

    provider: gives [train.batch, d] in the model's units. Of the recipe, the tables sae, meta and train and the key
    measure.threshold are used. sample: the rows for the input scale and the first b_dec; None takes the first 16,384
    rows, which are trained on as well. calibration: the rows for the threshold; None takes the
    measure.calibration_tokens rows that the provider gives after training. Both are a split of a metasae cache, or
    `metasae.data.split.Rows` of activations [rows, d]. metadata: model_name, hook_name, dataset_path and the like,
    where known; the hook, the context and the model of a SAELens store are taken from the store.

    Every arm needs a provider of its own that begins with the same batches. So does a call after an interruption, which
    continues from the last checkpoint: it draws the batches that were trained on and drops them. SAELens opens
    `folder/primary` with SAE.load_from_disk. Raises UserError for an unknown arm, batches of another shape than the
    recipe's, a NaN, and a provider that ends too early; Interrupted after a signal, once the state is saved.
    """
    recipe, folder = recipe if isinstance(recipe, Recipe) else Recipe.load(recipe), Path(folder)
    if arm not in ARMS:
        raise UserError(f"unknown arm '{arm}'{nearest(arm, ARMS)}")
    notes = {"arm": arm, "seed": seed, "settings": recipe.model_dump(mode="json", include={"sae", "meta", "train"})}
    if (folder / "primary" / CONFIG).exists():
        _refuse_another(folder, notes)
        return {name: SAE.load(folder / name) for name in ("primary", "meta") if (folder / name).is_dir()}
    size, progress = recipe.train.batch, Progress(show)
    batches = Provided(provider, size)
    start = batches.peek(-(-min(SAMPLE_ROWS, recipe.train.tokens) // size)) if sample is None else sample
    scale = batches.scale = input_scale(start, recipe.sae.normalize)
    if recipe.train.init:
        raise UserError("train.init belongs to `metasae run` and `metasae.train`; leave it empty for SAELens's batches")
    trainer = Trainer(recipe, arm, seed, initial_b_dec(start, scale, recipe), device)
    request = StopRequest(progress.answer, f"training {arm}, seed {seed}")
    with (
        request.listening() as stop,
        progress.task(f"train {arm}-s{seed}", recipe.train.tokens) as task,
        cores_for(recipe, device),
    ):
        train(trainer, batches, folder, task, stop)
    saes = trainer.export(scale, _metadata(provider, notes) | (metadata or {}))
    unseen = batches.take(recipe.measure.calibration_tokens) if calibration is None else calibration
    for line in save_trained(saes, recipe, unseen, folder, progress=progress):
        progress.say(line)
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    return saes


def _refuse_another(folder: Path, notes: dict) -> None:
    """Raises UserError where the SAE in a folder is not the one asked for."""
    theirs = _flat(SAE.load(folder / "primary").config.metadata.get("metasae", {}))
    for key, value in _flat(notes).items():
        if value != theirs.get(key):
            raise UserError(
                f"{folder} holds an SAE with {key} = {theirs.get(key)!r}, not {value!r}; "
                "choose another folder or delete it"
            )


def _flat(notes: dict) -> dict[str, Any]:
    """The settings in an SAE's notes, by the recipe's keys."""
    tables = notes.get("settings", {}).items()
    settings = {f"{name}.{key}": value for name, table in tables for key, value in table.items()}
    return {"arm": notes.get("arm"), "seed": notes.get("seed"), **settings}


class Provided:
    """A provider in place of metasae's stream: checked batches, scaled, with a cursor that moves forward only."""

    def __init__(self, provider: Iterator[Tensor], batch: int, scale: float = 1.0):
        self.batch, self.scale, self.position = batch, scale, 0
        self._provider, self._d = iter(provider), None

    def next(self) -> Tensor:
        """float32 [B, d], in the model's units times `scale`."""
        return self._draw() * self.scale

    def seek(self, position: int) -> None:
        while self.position < position:
            self._draw()

    def peek(self, count: int) -> Rows:
        """The rows of the next `count` batches, in the model's units; `next` still gives them afterwards."""
        first = [self._draw() for _ in range(count)]
        self.position -= count
        self._provider = chain(first, self._provider)
        return Rows(torch.cat(first))

    def take(self, n_rows: int) -> Rows:
        """The next `n_rows` rows, in the model's units."""
        return Rows(torch.cat([self._draw() for _ in range(-(-n_rows // self.batch))])[:n_rows])

    def _draw(self) -> Tensor:
        try:
            x_BD = next(self._provider)
        except StopIteration:
            more = "give a longer one, or lower train.tokens or measure.calibration_tokens"
            raise UserError(f"the provider ended after {self.position} batches; {more}") from None
        if x_BD.ndim != 2 or x_BD.shape[0] != self.batch:
            raise UserError(
                f"the provider gives batches of shape {list(x_BD.shape)}, "
                f"the recipe has train.batch = {self.batch}; make them equal"
            )
        if x_BD.shape[1] != (self._d or x_BD.shape[1]):
            raise UserError(
                f"batch {self.position} of the provider has width {x_BD.shape[1]}, those before it {self._d}"
            )
        self._d = x_BD.shape[1]
        x_BD = x_BD.detach().float()
        if not torch.isfinite(x_BD.sum()):
            raise UserError(f"a NaN or inf activation in batch {self.position} of the provider")
        self.position += 1
        return x_BD


def _metadata(provider: Any, notes: dict) -> dict[str, Any]:
    """The metadata of the SAE. It holds no recipe of a run, as model and text are the provider's and the recipe does
    not name them.
    """
    place = {key: getattr(provider, key, None) for key in ("hook_name", "context_size", "prepend_bos")}
    place["model_name"] = getattr(getattr(getattr(provider, "model", None), "cfg", None), "model_name", None)
    return checked.without_none(place) | {"metasae": {"version": metasae.__version__, **notes}}
