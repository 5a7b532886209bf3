"""A measured arm as exports of its activations see it: firings, provenance, the text of its tokens; and folders that are whole or absent."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from metasae.errors import UserError
from metasae.interop import checked
from metasae.interop.places import arm_with_firings, refuse_taken
from metasae.measures.firing.by_latent import ByLatent, open_by_latent, write_by_latent
from metasae.measures.firing.firings import Firings
from metasae.measures.firing.store import open_firings
from metasae.progress.progress import SILENT, Progress
from metasae.recipe.recipe import Recipe

# Entries that are checked at a time.
_CHUNK = 1 << 22


@dataclass(frozen=True)
class Arm:
    """folder: `arms/<arm>-s<seed>`, or any with `firings/` and `primary/`. metadata: of the SAE's cfg.json. recipe: as it was given."""

    folder: Path
    metadata: dict
    firings: Firings
    view: ByLatent
    given: str | Path | dict | Recipe | None = None

    @property
    def own(self) -> dict:
        """What metasae noted about the SAE's making; empty for others."""
        return checked.table(self.metadata, "metasae", str(self.folder))

    @property
    def name(self) -> str:
        """The arm's name, as `joint`."""
        name = self.own.get("arm")
        return name if isinstance(name, str) else self.folder.resolve().name

    @property
    def hook(self) -> str | None:
        hook = self.metadata.get("hook_name")
        return hook if isinstance(hook, str) else None

    @cached_property
    def recipe(self) -> Recipe:
        """Of the run folder above, or of the SAE's notes, where none was given. Raises UserError where there is none."""
        beside = self.folder.resolve().parent.parent / "recipe.toml"
        if isinstance(self.given, Recipe):
            return self.given
        if self.given is not None or beside.is_file():
            return Recipe.load(beside if self.given is None else self.given)
        held = checked.table(self.own, "recipe", str(self.folder))
        if not held:
            raise UserError(
                f"{self.folder} does not say which model its tokens belong to; give a recipe with model and text"
            )
        # an SAE may come from anybody, and its notes shall not make a model's code run here
        return Recipe.load(held, {"model.trust_remote_code": False})

    def strings(self, tokenizer=None) -> Callable[[np.ndarray], list[str]]:
        """int64 [m] -> the text of these tokens of the split, leading spaces included. tokenizer: None loads that of the recipe's model."""
        from metasae.interp.windows import planted_strings, token_strings

        if tokenizer is None and self.recipe.text.source == "planted":
            from metasae.data.planted.planted_cache import PlantedCache

            return planted_strings(
                PlantedCache(self.recipe.planted, {"evaluation": self.firings.n_tokens}).split("evaluation")
            )
        return token_strings(tokenizer or tokenizer_of(self.recipe), self.firings.tokens)


def open_arm(folder: str | Path, recipe: str | Path | dict | Recipe | None = None, progress: Progress = SILENT) -> Arm:
    """folder: an arm's, or its `primary`. recipe: for the text of tokens, where the run folder's own is not meant.

    Sorts the firings by latent and keeps that beside them, where it is not there yet. Raises UserError where the folder keeps no
    firings, or they or the config are damaged.
    """
    folder = arm_with_firings(folder)
    config = folder / "primary" / "cfg.json"
    cfg = checked.read_json(config) if config.exists() else {}
    firings = open_firings(folder / "firings")
    if cfg and firings.n_latents != cfg.get("d_sae"):
        raise _damaged(
            folder, f"they are of {firings.n_latents} latents, the SAE has {checked.shown(cfg.get('d_sae'))}"
        )
    try:
        view = open_by_latent(folder / "firings")
    except UserError:
        _check(folder, firings.indptr, firings.indices, firings.n_latents)
        view = write_by_latent(folder / "firings", progress=progress)
    _check(folder, view.indptr, view.tokens, firings.n_tokens)
    for start in range(0, len(view.values), _CHUNK):
        some = np.asarray(view.values[start : start + _CHUNK])
        if not (np.isfinite(some) & (some > 0)).all():
            raise _damaged(folder, "an activation is no positive number")
    return Arm(folder, checked.table(cfg, "metadata", str(config)), firings, view, recipe)


def _check(folder: Path, indptr: np.ndarray, entries: np.ndarray, limit: int) -> None:
    """A store from anywhere may hold any numbers, and these are used as places in arrays."""
    if indptr[0] != 0 or (np.diff(indptr) < 0).any():
        raise _damaged(folder, "an index does not rise")
    for start in range(0, len(entries), _CHUNK):
        some = np.asarray(entries[start : start + _CHUNK])
        if some.min() < 0 or some.max() >= limit:
            raise _damaged(folder, f"a number is not from 0 to {limit - 1}")


def _damaged(folder: Path, why: str) -> UserError:
    return UserError(f"the firings of {folder} are damaged: {why}; delete {folder / 'firings'} and measure it again")


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """Yields a folder beside `out` to write to, which takes its place at the end, or is removed on an error.

    Raises UserError where `out` is there and not an empty folder, and where the disk is full or cannot be written.
    """
    refuse_taken(out)
    part = out.with_name(f".{out.name}.part")
    try:
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        yield part
        part.replace(out)
    except OSError as error:
        raise UserError(
            f"cannot write {out}: {error.strerror or error}; free some space or choose another folder, then export again"
        ) from None
    finally:
        shutil.rmtree(part, ignore_errors=True)


def tokenizer_of(recipe: Recipe):
    """The tokenizer of a recipe's model. Raises UserError with one line where it cannot be had."""
    from transformers import AutoTokenizer

    from metasae.data.model.loading import quiet
    from metasae.data.model.model_folder import local_folder
    from metasae.data.text import hub

    folder = local_folder(recipe.model)
    unreachable = "" if folder is not None else hub.unreachable()
    options = {"trust_remote_code": recipe.model.trust_remote_code, "local_files_only": bool(folder or unreachable)}
    if folder is None and recipe.model.revision:
        options["revision"] = recipe.model.revision
    try:
        with quiet():
            return AutoTokenizer.from_pretrained(str(folder or recipe.model.source), **options)
    except Exception as error:  # transformers and the hub's client raise errors of every kind
        raise UserError(
            f"the tokenizer of '{recipe.model.source}' cannot be had: {unreachable or hub.reason(error)}"
        ) from None
