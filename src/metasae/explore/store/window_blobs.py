"""The windows of text that show a latent: which of its firings, and how they are packed.

Text is cut into cells of LENGTH tokens, document by document; in each cell a latent's strongest firing (the first of
equals) is a peak. A window is LENGTH tokens round its peak, moved where a document begins or ends. Peaks whose windows
have the same tokens as a stronger one's are left out. The others, strong to weak, are cut into tenths: decile 9 is the
strongest. Of each of the nine weaker tenths a few are shown, evenly spaced; all that are left over go to the strongest.

Packed, zlib: number of windows uint16 w; start int32 [w]; length, peak, decile, firings uint8 [w]; then of all firings
in the windows, in order, offset uint8 and value float32.
"""

import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np

from metasae.explore.store.blobs import short
from metasae.explore.store.schema import unzipped

LENGTH = 32
BEFORE = LENGTH // 2
WINDOWS = 40


@dataclass(frozen=True)
class Cells:
    """A text as windows are cut from it. cell: int32 [T]. begin, end: int32 [T], of the stretch round each token.

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

    def windows(self, peaks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """peaks int [m] -> start int64 [m], length int64 [m]."""
        begin, end = self.begin[peaks].astype(np.int64), self.end[peaks].astype(np.int64)
        start = np.maximum(np.minimum(peaks - BEFORE, end - LENGTH), begin)
        return start, np.minimum(end - start, LENGTH)


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


@dataclass(frozen=True)
class Chosen:
    """Windows of b latents, strong first within each.

    latent: int64 [w], rising, 0 to b - 1. starts, lengths, peaks (tokens): int64 [w].
    """

    latent: np.ndarray
    starts: np.ndarray
    lengths: np.ndarray
    peaks: np.ndarray
    deciles: np.ndarray


def choose(latent: np.ndarray, tokens: np.ndarray, values: np.ndarray, cells: Cells, count: int = WINDOWS) -> Chosen:
    """latent int [c] rising, tokens int [c] rising within a latent, values float32 [c]: the firings of some latents."""
    peak = _peaks(latent, cells.cell[tokens], values)
    latent, place, value = latent[peak], tokens[peak].astype(np.int64), values[peak]
    # one whole number to sort by: activations are above 0, so their bits rise with them
    weakness = (0xFFFFFFFF - value.view(np.uint32)).astype(np.uint64)
    # stable, so that the first of equals stays first
    order = np.argsort(latent.astype(np.uint64) << 32 | weakness, kind="stable")
    latent, place = latent[order], place[order]
    starts, lengths = cells.windows(place)
    names = latent.astype(np.int64) * (len(cells.content) + 1) + cells.content[starts]
    new = np.sort(np.unique(names, return_index=True)[1])
    latent, place, starts, lengths = latent[new], place[new], starts[new], lengths[new]
    # place of each window among its latent's, from 0, and how many its latent has
    _, first, sizes = np.unique(latent, return_index=True, return_counts=True)
    rank, size = np.arange(len(latent)) - np.repeat(first, sizes), np.repeat(sizes, sizes)
    decile = 9 - rank * 10 // size
    kept = _spread(latent, rank, size, decile, count)
    return Chosen(latent[kept], starts[kept], lengths[kept], place[kept], decile[kept])


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


def pack(
    chosen: Chosen, n_latents: int, latent: np.ndarray, tokens: np.ndarray, values: np.ndarray, n_tokens: int
) -> Iterator[bytes]:
    """The blob of each of n latents in order; the firings as given to `choose`."""
    place = latent.astype(np.int64) * n_tokens + tokens
    at = chosen.latent * n_tokens + chosen.starts
    low, high = np.searchsorted(place, at), np.searchsorted(place, at + chosen.lengths)
    fired = high - low
    ends = np.cumsum(fired)
    entries = np.repeat(high - ends, fired) + np.arange(fired.sum())
    offsets = (tokens[entries] - np.repeat(chosen.starts, fired)).astype(np.uint8)
    shown = values[entries].astype("<f4")
    starts = chosen.starts.astype("<i4")
    small = [array.astype(np.uint8) for array in (chosen.lengths, chosen.peaks - chosen.starts, chosen.deciles, fired)]
    first = np.searchsorted(chosen.latent, np.arange(n_latents + 1))
    first_entry = np.append(0, ends)[first].tolist()
    first = first.tolist()
    for i in range(n_latents):
        here, inside = slice(first[i], first[i + 1]), slice(first_entry[i], first_entry[i + 1])
        arrays = [np.uint16(first[i + 1] - first[i]), starts[here], *(array[here] for array in small)]
        packed = b"".join(array.tobytes() for array in (*arrays, offsets[inside], shown[inside]))
        yield zlib.compress(packed, 1)


def unpack(blob: bytes) -> list[tuple[int, int, int, list[float]]]:
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
