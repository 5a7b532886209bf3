"""The rows that come from firings: the evaluation text and one SAE's latents.

Of the text: its tokens' strings, and where documents begin. Of latents: scalars, windows, tokens and histogram, from
one pass over the firings by latent.
"""

import json
import sqlite3
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np

from metasae.arms.source import Source
from metasae.data.model.loading import load_tokenizer
from metasae.data.text.pieces import Pieces
from metasae.encodings import readable
from metasae.errors import UserError
from metasae.explore.store import blobs
from metasae.explore.store.open_store import CHUNK, StringsOf, folded, stretches_of
from metasae.explore.store.schema import key_of
from metasae.interp.excerpts import planted_strings, token_strings
from metasae.measures.firing.by_latent import ByLatent
from metasae.measures.firing.firings import Firings
from metasae.progress.progress import SILENT, Task
from metasae.recipe.recipe import GIVEN, Recipe

# Firings looked at in one go: about 200 MB.
FIRINGS = 1 << 20
_INSERT = (
    "INSERT INTO latents (key, sae, latent, firings, rate, threshold, max, top_tokens) VALUES (?, ?, ?, ?, ?, ?, ?, ?)"
)


@dataclass(frozen=True)
class Strings:
    """The text of a split's tokens. named: of each alone, in tables. asked: as auto-interp shows it to judges.

    shown: of all tokens in order, in windows; None where each reads as it is named.
    """

    named: StringsOf
    asked: StringsOf
    shown: StringsOf | None = None


@dataclass(frozen=True)
class SplitText:
    """One evaluation text. entries: int64 [T], of the vocabulary. ids, counts: int64 [V], of each entry.

    stretches: as `stretches_of`. cells: as windows are cut from it. strings: of the vocabulary's entries [V]. own: of
    every token its piece of the text; None where each reads as its entry of the vocabulary.
    """

    entries: np.ndarray
    ids: np.ndarray
    counts: np.ndarray
    stretches: np.ndarray
    cells: blobs.Cells
    strings: list[str]
    own: list[str] | None


def text_of(firings: Firings, strings: Strings) -> SplitText:
    """The evaluation text of some firings."""
    ids, first, entries, counts = np.unique(
        np.asarray(firings.tokens), return_index=True, return_inverse=True, return_counts=True
    )
    named, own = [readable(string) for string in strings.named(first)], None
    if strings.shown is not None:
        own = [readable(string) for string in strings.shown(np.arange(firings.n_tokens))]
    stretches = stretches_of(np.asarray(firings.documents), np.asarray(firings.positions))
    entries = entries.reshape(-1).astype(np.int64)
    cells = blobs.Cells.of(entries, stretches[0])
    return SplitText(entries, ids.astype(np.int64), counts.astype(np.int64), stretches, cells, named, own)


def write_text(store: sqlite3.Connection, digest: str, text: SplitText) -> None:
    packed = zlib.compress(np.ascontiguousarray(text.stretches, "<i8").tobytes(), 6)
    sql = "INSERT INTO texts (digest, n_tokens, stretches) VALUES (?, ?, ?)"
    number = store.execute(sql, (digest, len(text.entries), packed)).lastrowid
    columns = (text.ids.tolist(), text.counts.tolist(), text.strings)
    rows = (
        (number, entry, token, count, string, folded(string))
        for entry, (token, count, string) in enumerate(zip(*columns, strict=True))
    )
    store.executemany("INSERT INTO vocabulary VALUES (?, ?, ?, ?, ?, ?)", rows)
    for chunk, start in enumerate(range(0, len(text.entries), CHUNK)):
        entries = text.entries[start : start + CHUNK]
        own = None if text.own is None else text.own[start : start + CHUNK]
        # most chunks of most texts have no character of several tokens
        differs = own is not None and own != [text.strings[entry] for entry in entries.tolist()]
        packed = zlib.compress(json.dumps(own).encode(), 1) if differs else None
        row = (number, chunk, zlib.compress(entries.astype("<u4").tobytes(), 1), packed)
        store.execute("INSERT INTO text_chunks VALUES (?, ?, ?, ?)", row)


def strings_of_run(run_folder: Path, recipe: Recipe | None, firings: Firings) -> Strings:
    """Of the run's evaluation split. Raises UserError without a recipe, and where the tokenizer cannot be had."""
    if recipe is None:
        raise UserError(
            f"{run_folder} is not a run folder: it has no recipe.toml; give the --out folder of `metasae run`"
        )
    if recipe.text.source == GIVEN:
        # no text goes with them
        return Strings(*(lambda places: [f" row {place}" for place in np.asarray(places)] for _ in range(3)))
    if recipe.text.source == "planted":
        source = Source(recipe, run_folder, "cpu", SILENT)
        planted = planted_strings(source.open({"evaluation": firings.n_tokens}).split("evaluation"))
        # a token of a planted world is named by what stands before the first `/`
        return Strings(lambda places: [string.split("/")[0] for string in planted(places)], planted, planted)
    tokenizer, tokens = load_tokenizer(recipe.model), np.asarray(firings.tokens)
    pieces = Pieces(tokenizer)
    stretches = np.append(stretches_of(np.asarray(firings.documents), np.asarray(firings.positions))[0], len(tokens))

    def shown(places: np.ndarray) -> list[str]:
        # no windows are cut here, so each character stands with the token that ends it, once
        return [piece for a, b in pairwise(stretches.tolist()) for piece in pieces.of(tokens[a:b])]

    asked = token_strings(tokenizer, tokens, firings.documents, firings.positions)
    return Strings(lambda places: list(map(pieces.name, tokens[places].tolist())), asked, shown)


def token_texts(tokenizer, ids) -> list[str]:
    """ids: int [m], of the vocabulary -> the text of each alone, as after another word, leading space included.

    What a token holds of a character that it is only a part of is shown as its bytes: `<0xE2><0x80>`.
    """
    pieces = Pieces(tokenizer)
    return [readable(pieces.name(number)) for number in np.asarray(ids, np.int64).tolist()]


def write_latents(
    store: sqlite3.Connection,
    sae: int,
    view: ByLatent,
    text: SplitText,
    text_number: int,
    threshold: np.ndarray,
    task: Task,
) -> None:
    """Writes latents, windows, tokens, histograms and top_tokens of an SAE with firings. threshold: float [n], NaN
    for none."""
    searched: list[tuple[np.ndarray, np.ndarray]] = []
    for first, last in ranges(view.indptr, FIRINGS):
        searched += _write_block(store, sae, first, last, view, text, threshold[first:last])
        task.advance(last - first)
    latents = np.repeat(np.arange(view.n_latents), [len(entries) for entries, _ in searched])
    entries = np.concatenate([np.zeros(0, np.int64), *(entries for entries, _ in searched)])
    on = np.concatenate([np.zeros(0, np.int64), *(firings for _, firings in searched)])
    specific = blobs.token_f1(on, view.counts()[latents], text.counts[entries])
    # of each token of the vocabulary the latents that have it among their first, the most specific first
    order = np.lexsort((latents, -specific, entries))
    names, first, sizes = np.unique(entries[order], return_index=True, return_counts=True)
    packed = blobs.pack_specific(latents[order], specific[order])
    places = zip(names.tolist(), first.tolist(), sizes.tolist(), strict=True)
    rows = ((text_number, entry, sae, packed[begin : begin + size].tobytes()) for entry, begin, size in places)
    store.executemany("INSERT INTO top_tokens VALUES (?, ?, ?, ?)", rows)


def write_bare_latents(store: sqlite3.Connection, sae: int, threshold: np.ndarray, task: Task) -> None:
    """The rows of an SAE without firings; only its thresholds are known."""
    rows = ((key_of(sae, i), sae, i, None, None, value, None, "[]") for i, value in enumerate(threshold.tolist()))
    store.executemany(_INSERT, rows)
    task.advance(len(threshold))


def ranges(indptr: np.ndarray, size: int) -> Iterator[tuple[int, int]]:
    """Ranges of latents with at most `size` firings together, but at least one latent."""
    first, n_latents = 0, len(indptr) - 1
    while first < n_latents:
        last = int(np.searchsorted(indptr, indptr[first] + size, side="right")) - 1
        last = min(max(last, first + 1), n_latents)
        yield first, last
        first = last


def _write_block(
    store: sqlite3.Connection,
    sae: int,
    first: int,
    last: int,
    view: ByLatent,
    text: SplitText,
    threshold: np.ndarray,
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Writes latents first to last - 1 from all their firings. threshold: of these latents.

    Returns for each latent the entries of the vocabulary by which it is searched, and how often it fires on each.
    """
    firings = slice(int(view.indptr[first]), int(view.indptr[last]))
    tokens, values = np.asarray(view.tokens[firings]), np.asarray(view.values[firings])
    counts, n = np.diff(view.indptr[first : last + 1]), last - first
    latent = np.repeat(np.arange(n), counts)
    low, high = extremes(values, counts)
    # activations begin at the threshold, where there is one
    low = np.where(counts > 0, np.minimum(low, np.where(np.isfinite(threshold), np.maximum(threshold, 0), 0)), 0)
    bins = blobs.histograms(latent, values, low, high).astype("<u4")
    packed = list(blobs.pack_windows(latent, tokens, values, text.cells, n))
    most = list(blobs.top_tokens(latent, text.entries[tokens], n, len(text.ids)))

    keys, live = [key_of(sae, i) for i in range(first, last)], np.flatnonzero(counts).tolist()
    low, high, counts = low.tolist(), high.tolist(), counts.tolist()
    scalars = []
    for i, (entries, _) in enumerate(most):
        named = json.dumps([text.strings[entry] for entry in entries[: blobs.NAMED].tolist()])
        rate, strongest = counts[i] / max(len(text.entries), 1), high[i] if counts[i] else None
        scalars.append((keys[i], sae, first + i, counts[i], rate, float(threshold[i]), strongest, named))
    store.executemany(_INSERT, scalars)
    store.executemany("INSERT INTO windows VALUES (?, ?)", ((keys[i], packed[i]) for i in live))
    store.executemany("INSERT INTO tokens VALUES (?, ?)", ((keys[i], blobs.pack_tokens(*most[i])) for i in live))
    rows = ((keys[i], low[i], high[i], zlib.compress(bins[i].tobytes(), 1)) for i in live)
    store.executemany("INSERT INTO histograms VALUES (?, ?, ?, ?)", rows)
    return [(entries[: blobs.SEARCHED], firings[: blobs.SEARCHED]) for entries, firings in most]


def extremes(values: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Smallest and largest value of each latent, float64 [b]; 0 where it never fires.

    values [c]: in the order of latents. counts [b]: of each.
    """
    low, high = np.zeros(len(counts)), np.zeros(len(counts))
    live = counts > 0
    if live.any():
        starts = (np.cumsum(counts) - counts)[live]
        low[live], high[live] = np.minimum.reduceat(values, starts), np.maximum.reduceat(values, starts)
    return low, high
