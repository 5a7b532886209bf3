"""The firings that an arm keeps, with their provenance and the text of their tokens, for other tools.

Other tools keep text in rows of one length: token t stands at (row[t], column[t]). Special tokens that stood round the
model's windows are not in a firing store, so they are not in the rows either, and a row may hold tokens of two of the
model's windows.
"""

from collections.abc import Callable, Iterator
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
# Tokens of rows that are in memory at once.
BLOCK = 1 << 20


@dataclass(frozen=True)
class StoredFirings:
    """Checked firings of one arm, over T tokens.

    arm: its folder may be any with `firings/` and `primary/`. metadata: of the SAE's cfg.json; {} without one. notes:
    metasae's notes in it on how the SAE was made; {} for SAEs of other libraries. hook: the hook point's name; empty
    where the metadata have none. firings, by_latent: the same entries in the order of tokens and of latents.
    """

    arm: Arm
    metadata: dict
    notes: dict
    hook: str
    firings: Firings
    by_latent: ByLatent

    @cached_property
    def recipe(self) -> Recipe:
        """The recipe in the run folder above, or in the SAE's notes. Raises UserError where there is none."""
        beside = self.arm.folder.resolve().parent.parent / "recipe.toml"
        if beside.is_file():
            return Recipe.stored(beside)
        noted = checked.table(self.notes, "recipe", str(self.arm.folder))
        if not noted:
            raise UserError(
                f"{self.arm.folder} does not say which model its tokens belong to; put the recipe.toml of its run, "
                f"with model and text, at {beside}"
            )
        # an SAE may come from anybody, and its notes must not make a model's code run here
        return Recipe.stored(noted, {"model.trust_remote_code": False})

    def strings(self, tokenizer=None) -> Callable[[np.ndarray], list[str]]:
        """int64 [m], tokens of the split -> their pieces of the text, as `metasae.data.text.pieces` cuts it.

        tokenizer: None for that of the recipe's model. Raises UserError with one line where it cannot be loaded.
        """
        from metasae.data.model.loading import load_tokenizer
        from metasae.interp.excerpts import planted_strings, token_strings

        if tokenizer is None and self.recipe.text.source == "planted":
            from metasae.data.planted.planted_cache import PlantedCache

            planted = PlantedCache(self.recipe.planted, {"evaluation": self.firings.n_tokens})
            return planted_strings(planted.split("evaluation"))
        places = self.firings.tokens, self.firings.documents, self.firings.positions
        return token_strings(tokenizer or load_tokenizer(self.recipe.model), *places)


def stored_firings(folder: str | Path, progress: Progress = SILENT) -> StoredFirings:
    """Opens the firings of an arm. folder: the arm's, or its `primary`. Sorts the firings by latent and keeps the
    result beside them, where it is not there yet. Raises UserError where the folder keeps no firings, or they or the
    config are damaged.
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
        raise _damaged(
            folder, f"they are of {firings.n_latents} latents, the SAE has {checked.shown(cfg.get('d_sae'))}"
        )
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
    return StoredFirings(arm, metadata, notes, hook if isinstance(hook, str) else "", firings, by_latent)


def _check(folder: Path, indptr: np.ndarray, entries: np.ndarray, limit: int) -> None:
    """Raises UserError for entries that are not valid: a store from elsewhere may hold any numbers, and these are used
    as places in arrays.
    """
    if indptr[0] != 0 or (np.diff(indptr) < 0).any():
        raise _damaged(folder, "an index does not rise")
    for start in range(0, len(entries), _CHUNK):
        numbers = np.asarray(entries[start : start + _CHUNK])
        if numbers.min() < 0 or numbers.max() >= limit:
            raise _damaged(folder, f"a number is not from 0 to {limit - 1}")


def _damaged(folder: Path, why: str) -> UserError:
    return UserError(f"the firings of {folder} are damaged: {why}; delete {folder / 'firings'} and measure it again")


@dataclass(frozen=True)
class TokenGrid:
    """row, column: int32 [T], rows rising. n_rows: R. length: L."""

    row: np.ndarray
    column: np.ndarray
    n_rows: int
    length: int

    def blocks(self, values: np.ndarray, fill: int) -> Iterator[np.ndarray]:
        """values int [T] in rows, int64 [<= b, L] at a time, `fill` where there is no token."""
        size = max(1, BLOCK // self.length)
        for first in range(0, self.n_rows, size):
            last = min(first + size, self.n_rows)
            start, end = self.tokens_of(first, last)
            block = np.full((last - first, self.length), fill, np.int64)
            block[self.row[start:end] - first, self.column[start:end]] = values[start:end]
            yield block

    def tokens_of(self, first: int, last: int) -> tuple[int, int]:
        """The tokens [start, end) of the split that stand in the rows [first, last)."""
        # in the array's own dtype, as numpy would otherwise copy the whole array to a wider one
        start, end = np.searchsorted(self.row, np.array([first, last], self.row.dtype))
        return int(start), int(end)


def grid_of(documents: np.ndarray, positions: np.ndarray, length: int) -> TokenGrid:
    """Each document is cut into rows from its first token on; its last row is padded on the right.

    documents, positions: int32 [T], as in `Firings`. A gap in the positions ends a row as the end of a document does.
    """
    n_tokens = len(documents)
    number = np.arange(n_tokens, dtype=np.int32)
    starts = np.concatenate([[0], np.flatnonzero((np.diff(documents) != 0) | (np.diff(positions) != 1)) + 1])
    sizes = np.diff(np.append(starts, n_tokens))
    rows = -(-sizes // length)
    before = np.cumsum(rows) - rows
    within = number - np.repeat(starts, sizes).astype(np.int32)
    row = np.repeat(before, sizes).astype(np.int32) + within // length
    return TokenGrid(row, within % length, int(rows.sum()), length)


def row_length(metadata: dict, wanted: int | None) -> int:
    """The length wanted, or the context the SAE was trained with. Raises UserError where neither is a length."""
    length = metadata.get("context_size") if wanted is None else wanted
    if not isinstance(length, int) or isinstance(length, bool) or not 1 <= length < 1 << 16:
        raise UserError(f"rows need a length from 1 to 65,535 tokens, not {str(length)[:20]}; give context=128")
    return length
