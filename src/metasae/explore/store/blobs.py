"""Chooses and packs the arrays of a latent: neighbours, top tokens, the histogram of its activations, windows.

Of token v of the vocabulary: `with` = firings on it, count = its occurrences in the text, share = with / firings =
P(v | fires), lift = share / P(v).

Windows of text show a latent. Text is cut into cells of LENGTH tokens, document by document; in each cell a latent's
strongest firing (the first of equals) is a peak. A window is LENGTH tokens round its peak, moved where a document
begins or ends. Peaks whose windows have the same tokens as a stronger one's are left out. The others, strong to weak,
are cut into tenths: decile 9 is the strongest. Of each of the nine weaker tenths a few are shown, evenly spaced; all
that are left over go to the strongest.

Windows packed, zlib: number of windows uint16 w; start int32 [w]; length, peak, decile, firings uint8 [w]; then of all
firings in the windows, in order, offset uint8 and value float32.
"""

import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np

from metasae.explore.store.schema import unzipped

TOP = 30
NAMED = 5
SEARCHED = 8
BINS = 40
LENGTH = 32
BEFORE = LENGTH // 2
WINDOWS = 40
# A latent that has a token among its first SEARCHED ones, and how specific it is to the token.
SPECIFIC = np.dtype([("latent", "<i4"), ("f1", "<f4")])


def pack_edges(latents: np.ndarray, values: np.ndarray) -> bytes:
    """int32 [m] latents, then float32 [m] values, the closest first."""
    return latents.astype("<i4").tobytes() + values.astype("<f4").tobytes()


def unpack_edges(blob: bytes) -> tuple[list[int], list[float]]:
    half = len(blob) // 2
    values = np.frombuffer(blob, "<f4", offset=half).tolist()
    return np.frombuffer(blob[:half], "<i4").tolist(), [short(value) for value in values]


def pack_tokens(entries: np.ndarray, firings: np.ndarray) -> bytes:
    """uint32 [2, m] of vocabulary entry and `with`, most first, ties to the lower entry."""
    return np.stack([entries, firings]).astype("<u4").tobytes()


def unpack_tokens(blob: bytes) -> tuple[list[int], list[int]]:
    """(entries, firings on each)."""
    entries, firings = np.frombuffer(blob, "<u4").reshape(2, -1)
    return entries.tolist(), firings.tolist()


def token_f1(on: np.ndarray | int, firings: np.ndarray | int, count: np.ndarray | int) -> np.ndarray:
    """float64 [m], or one number: how specific a latent is to a token, the F1 of its firing as the token's detector.

    F1 = 2 on / (firings + count): 1 where it fires on every occurrence of the token and on nothing else. on: firings on
    the token, int [m]. firings: of the latent. count: occurrences of the token in the text.
    """
    return 2 * on / np.maximum(firings + count, 1)


def pack_specific(latents: np.ndarray, specific: np.ndarray) -> np.ndarray:
    """Records [m] of latent and F1 (`token_f1`): the rows of the table top_tokens."""
    records = np.empty(len(latents), SPECIFIC)
    records["latent"], records["f1"] = latents, specific
    return records


def short(value: float) -> float:
    """A number with six digits, which is more than the pages show of an activation, a share or a lift."""
    return float(f"{value:.6g}")


def top_tokens(
    latent: np.ndarray, entries: np.ndarray, n_latents: int, vocabulary: int, count: int = TOP
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Of each of n latents in order (entries int64 [m], firings on each int64 [m]), m <= count.

    latent int [c] rising, entries int [c]: of each firing.
    """
    pairs, firings = np.unique(latent.astype(np.int64) * vocabulary + entries, return_counts=True)
    of = pairs // vocabulary
    # stable, so that the lower entry comes first among equals
    order = np.lexsort((-firings, of))
    pairs, firings = pairs[order] % vocabulary, firings[order]
    first = np.searchsorted(of, np.arange(n_latents + 1)).tolist()
    for i in range(n_latents):
        here = slice(first[i], min(first[i + 1], first[i] + count))
        yield pairs[here], firings[here]


def histograms(
    latent: np.ndarray, values: np.ndarray, low: np.ndarray, high: np.ndarray, bins: int = BINS
) -> np.ndarray:
    """int64 [b, bins]: firings of each latent by activation, in even bins from low to high, as by np.histogram.

    The last bin holds its upper edge. latent int [c], 0 to b - 1. values float [c], all within their latent's low [b]
    and high [b], float64.
    """
    edges = edges_of(low, high, bins)
    width = np.where(high > low, high - low, 1.0)
    exact = values.astype(np.float64)
    place = ((exact - low[latent]) * (bins / width[latent])).astype(np.int64).clip(0, bins - 1)
    # the division rounds: what it puts beside its bin is put right by the edges themselves
    place -= exact < edges[latent, place]
    place += (exact >= edges[latent, place + 1]) & (place < bins - 1)
    return np.bincount(latent * bins + place, minlength=len(low) * bins).reshape(len(low), bins)


def edges_of(low: np.ndarray, high: np.ndarray, bins: int = BINS) -> np.ndarray:
    """float64 [b, bins + 1]."""
    return low[:, None] + (high - low)[:, None] * (np.arange(bins + 1) / bins)


@dataclass(frozen=True)
class Cells:
    """A text divided for windows. cell: int32 [T]. begin, end: int32 [T], of the stretch round each token.

    content: int64 [T], equal where the windows that begin at two tokens have the same tokens.
    """

    cell: np.ndarray
    begin: np.ndarray
    end: np.ndarray
    content: np.ndarray

    @classmethod
    def of(cls, entries: np.ndarray, first: np.ndarray) -> "Cells":
        """entries: int [T], which token stands where. first: int64 [s], where stretches begin."""
        n_tokens = len(entries)
        lengths = np.diff(np.append(first, n_tokens))
        begin = np.repeat(first, lengths).astype(np.int32)
        end = np.repeat(first + lengths, lengths).astype(np.int32)
        new = (np.arange(n_tokens, dtype=np.int32) - begin) % LENGTH == 0
        return cls((np.cumsum(new) - 1).astype(np.int32), begin, end, _contents(entries, end))


def _contents(entries: np.ndarray, end: np.ndarray) -> np.ndarray:
    """int64 [T]: a number for the LENGTH tokens from each token on, fewer where its stretch ends.

    Twice as many tokens have the same number where both halves do; 0 stands for a half beyond the end.
    """
    content, place = np.unique(entries, return_inverse=True)[1].reshape(-1) + 1, np.arange(len(entries))
    for half in (1, 2, 4, 8, 16):
        after = np.minimum(place + half, len(entries) - 1)
        second = np.where(place + half < end, content[after], 0)
        content = np.unique(content * (len(entries) + 1) + second, return_inverse=True)[1].reshape(-1) + 1
    return content


def _choose(
    latent: np.ndarray, tokens: np.ndarray, values: np.ndarray, cells: Cells, count: int
) -> tuple[np.ndarray, ...]:
    """The windows of the latents, strong first within each: (latent rising, start, length, peak, decile), int64 [w]."""
    peak = _peaks(latent, cells.cell[tokens], values)
    latent, place, value = latent[peak], tokens[peak].astype(np.int64), values[peak]
    # one whole number to sort by: activations are above 0, so their bits rise with them
    weakness = (0xFFFFFFFF - value.view(np.uint32)).astype(np.uint64)
    # stable, so that the first of equals stays first
    order = np.argsort(latent.astype(np.uint64) << 32 | weakness, kind="stable")
    latent, place = latent[order], place[order]
    begin, end = cells.begin[place].astype(np.int64), cells.end[place].astype(np.int64)
    starts = np.maximum(np.minimum(place - BEFORE, end - LENGTH), begin)
    lengths = np.minimum(end - starts, LENGTH)
    names = latent.astype(np.int64) * (len(cells.content) + 1) + cells.content[starts]
    new = np.sort(np.unique(names, return_index=True)[1])
    latent, place, starts, lengths = latent[new], place[new], starts[new], lengths[new]
    # place of each window among its latent's, from 0, and how many its latent has
    _, first, sizes = np.unique(latent, return_index=True, return_counts=True)
    rank, size = np.arange(len(latent)) - np.repeat(first, sizes), np.repeat(sizes, sizes)
    decile = 9 - rank * 10 // size
    kept = _spread(latent, rank, size, decile, count)
    return latent[kept], starts[kept], lengths[kept], place[kept], decile[kept]


def _peaks(latent: np.ndarray, cell: np.ndarray, values: np.ndarray) -> np.ndarray:
    """int64 [p]: the strongest firing of each latent in each cell, the first of equals."""
    if not len(latent):
        return np.zeros(0, np.int64)
    new = np.concatenate([[True], (np.diff(latent) != 0) | (np.diff(cell) != 0)])
    first = np.flatnonzero(new)
    group = np.cumsum(new) - 1
    strongest = np.flatnonzero(values == np.maximum.reduceat(values, first)[group])
    return strongest[np.concatenate([[True], np.diff(group[strongest]) != 0])]


def _spread(latent: np.ndarray, rank: np.ndarray, size: np.ndarray, decile: np.ndarray, count: int) -> np.ndarray:
    """bool [c]: which peaks are shown, `count` of each latent or all it has."""
    weaker = count // 13 if count >= 13 else count // 10
    kept = size <= count
    if weaker:
        # places of a tenth among the strong-first ranks: r with 9 - 10 r // size = decile
        low = -(-(9 - decile) * size // 10)
        width = np.maximum(-(-(10 - decile) * size // 10) - low, 1)
        step = (rank - low) * weaker // width
        before = (rank - low - 1) * weaker // width
        kept |= (decile < 9) & ((step != before) | (rank == low))
    # what is left over goes to the strongest
    first = np.flatnonzero(rank == 0)
    missing = count - np.add.reduceat(kept.astype(np.int64), first) if len(first) else first
    waiting = np.cumsum(~kept)
    before = waiting[first] - ~kept[first]
    sizes = size[first]
    return kept | (~kept & (waiting - np.repeat(before, sizes) <= np.repeat(missing, sizes)))


def pack_windows(
    latent: np.ndarray, tokens: np.ndarray, values: np.ndarray, cells: Cells, n_latents: int, count: int = WINDOWS
) -> Iterator[bytes]:
    """The blob of each of n latents in order.

    latent int64 [c] rising, tokens int [c] rising within a latent, values float32 [c]: all their firings.
    """
    of, starts, lengths, peaks, deciles = _choose(latent, tokens, values, cells, count)
    n_tokens = len(cells.cell)
    place, at = latent * n_tokens + tokens, of * n_tokens + starts
    low, high = np.searchsorted(place, at), np.searchsorted(place, at + lengths)
    fired = high - low
    ends = np.cumsum(fired)
    entries = np.repeat(high - ends, fired) + np.arange(fired.sum())
    offsets = (tokens[entries] - np.repeat(starts, fired)).astype(np.uint8)
    shown = values[entries].astype("<f4")
    small = [array.astype(np.uint8) for array in (lengths, peaks - starts, deciles, fired)]
    first = np.searchsorted(of, np.arange(n_latents + 1))
    first_entry = np.append(0, ends)[first].tolist()
    first, starts = first.tolist(), starts.astype("<i4")
    for i in range(n_latents):
        here, inside = slice(first[i], first[i + 1]), slice(first_entry[i], first_entry[i + 1])
        arrays = [np.uint16(first[i + 1] - first[i]), starts[here], *(array[here] for array in small)]
        packed = b"".join(array.tobytes() for array in (*arrays, offsets[inside], shown[inside]))
        yield zlib.compress(packed, 1)


def unpack_windows(blob: bytes) -> list[tuple[int, int, int, list[float]]]:
    """(decile, first token in the split, peak in the window, value of each token, 0 where silent) of each window."""
    data = unzipped(blob)
    count = int(np.frombuffer(data, "<u2", 1)[0])
    starts = np.frombuffer(data, "<i4", count, 2).tolist()
    lengths, peaks, deciles, fired = np.frombuffer(data, np.uint8, 4 * count, 2 + 4 * count).reshape(4, count).tolist()
    total, at = sum(fired), 2 + 8 * count
    offsets = np.frombuffer(data, np.uint8, total, at).tolist()
    strengths = np.frombuffer(data, "<f4", total, at + total).tolist()
    firings = zip(offsets, strengths, strict=True)
    windows = []
    for start, length, peak, decile, many in zip(starts, lengths, peaks, deciles, fired, strict=True):
        # a whole 0 is half as long on its way to the page
        values: list[float] = [0] * length
        for offset, strength in islice(firings, many):
            values[offset] = short(strength)
        windows.append((decile, start, peak, values))
    return windows
