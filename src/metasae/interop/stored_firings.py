"""The firings that an arm keeps, with their provenance and the text of their tokens, as other tools need them."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from metasae.arms.folder import Arm
from metasae.errors import UserError
from metasae.interop import checked
from metasae.interop.detection import arm_with_firings
from metasae.measures.firing.by_latent import ByLatent, open_by_latent, write_by_latent
from metasae.measures.firing.firings import Firings
from metasae.progress.progress import SILENT, Progress
from metasae.recipe.recipe import Recipe
from metasae.sae.layout import CONFIG

# Entries that are checked at a time.
_CHUNK = 1 << 22


@dataclass(frozen=True)
class StoredFirings:
    """Checked firings of one arm, over T tokens.

    arm: its folder may be any with `firings/` and `primary/`. metadata: of the SAE's cfg.json; {} without one. notes:
    what metasae noted in it about the SAE's making; {} for SAEs of other making. hook: the hook point's name; empty
    where the metadata have none. firings, by_latent: the same entries in the order of tokens and of latents. given:
    the recipe that the caller gave.
    """

    arm: Arm
    metadata: dict
    notes: dict
    hook: str
    firings: Firings
    by_latent: ByLatent
    given: Recipe | None

    @cached_property
    def recipe(self) -> Recipe:
        """The recipe given, or of the run folder above, or of the SAE's notes. Raises UserError where there is none."""
        beside = self.arm.folder.resolve().parent.parent / "recipe.toml"
        if self.given is not None or beside.is_file():
            return self.given or Recipe.load(beside)
        noted = checked.table(self.notes, "recipe", str(self.arm.folder))
        if not noted:
            raise UserError(
                f"{self.arm.folder} does not say which model its tokens belong to; give a recipe with model and text"
            )
        # an SAE may come from anybody, and its notes must not make a model's code run here
        return Recipe.load(noted, {"model.trust_remote_code": False})

    def strings(self, tokenizer=None) -> Callable[[np.ndarray], list[str]]:
        """int64 [m], tokens of the split -> their text, leading spaces included.

        tokenizer: None for that of the model.
        """
        from metasae.interp.windows import planted_strings, token_strings

        if tokenizer is None and self.recipe.text.source == "planted":
            from metasae.data.planted.planted_cache import PlantedCache

            planted = PlantedCache(self.recipe.planted, {"evaluation": self.firings.n_tokens})
            return planted_strings(planted.split("evaluation"))
        return token_strings(tokenizer or self.tokenizer(), self.firings.tokens)

    def tokenizer(self):
        """The tokenizer of the recipe's model. Raises UserError with one line where it cannot be had."""
        from metasae.data.model.loading import load_tokenizer

        return load_tokenizer(self.recipe.model)


def stored_firings(
    folder: str | Path, recipe: str | Path | dict | Recipe | None = None, progress: Progress = SILENT
) -> StoredFirings:
    """folder: an arm's, or its `primary`. recipe: for the text of tokens, where the run folder's own is not meant.

    Sorts the firings by latent and keeps that beside them, where it is not there yet. Raises UserError where the folder
    keeps no firings, or they or the config are damaged.
    """
    folder = arm_with_firings(folder)
    config = folder / "primary" / CONFIG
    cfg = checked.read_json(config) if config.exists() else {}
    metadata = checked.table(cfg, "metadata", str(config))
    notes = checked.table(metadata, "metasae", str(folder))
    name, seed, hook = notes.get("arm"), notes.get("seed"), metadata.get("hook_name")
    name = name if isinstance(name, str) else folder.resolve().name
    arm = Arm(name, seed if isinstance(seed, int) else 0, folder)
    firings = arm.firings()
    if cfg and firings.n_latents != cfg.get("d_sae"):
        theirs = checked.shown(cfg.get("d_sae"))
        raise _damaged(folder, f"they are of {firings.n_latents} latents, the SAE has {theirs}")
    try:
        by_latent = open_by_latent(folder / "firings")
    except UserError:
        _check(folder, firings.indptr, firings.indices, firings.n_latents)
        by_latent = write_by_latent(folder / "firings", progress=progress)
    _check(folder, by_latent.indptr, by_latent.tokens, firings.n_tokens)
    for start in range(0, len(by_latent.values), _CHUNK):
        values = np.asarray(by_latent.values[start : start + _CHUNK])
        if not (np.isfinite(values) & (values > 0)).all():
            raise _damaged(folder, "an activation is no positive number")
    given = recipe if recipe is None or isinstance(recipe, Recipe) else Recipe.load(recipe)
    return StoredFirings(arm, metadata, notes, hook if isinstance(hook, str) else "", firings, by_latent, given)


def _check(folder: Path, indptr: np.ndarray, entries: np.ndarray, limit: int) -> None:
    """A store from anywhere may hold any numbers, and these are used as places in arrays."""
    if indptr[0] != 0 or (np.diff(indptr) < 0).any():
        raise _damaged(folder, "an index does not rise")
    for start in range(0, len(entries), _CHUNK):
        numbers = np.asarray(entries[start : start + _CHUNK])
        if numbers.min() < 0 or numbers.max() >= limit:
            raise _damaged(folder, f"a number is not from 0 to {limit - 1}")


def _damaged(folder: Path, why: str) -> UserError:
    return UserError(f"the firings of {folder} are damaged: {why}; delete {folder / 'firings'} and measure it again")
