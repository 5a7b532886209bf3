"""The windows of text that show a latent: which of its firings, and how they are packed.

Text is cut into cells of LENGTH tokens, document by document; in each cell a latent's strongest firing (the first of equals) is a
peak. A window is LENGTH tokens round its peak, moved where a document begins or ends. Peaks whose windows have the same tokens
as a stronger one's are left out. The others, strong to weak, are cut into tenths: decile 9 is the strongest. Of each of the
nine weaker tenths a few are shown, evenly spaced; all that are left over go to the strongest.

Packed, zlib: number of windows uint16 w; start int32 [w]; length, peak, decile, firings uint8 [w]; then of all firings in the
windows, in order, offset uint8 and value float32.
"""

import zlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from metasae.explore.store.schema import unzipped

LENGTH = 32
BEFORE = LENGTH // 2
WINDOWS = 40
_ROLL = np.uint64(0x9E3779B97F4A7C15)


@dataclass(frozen=True)
class Cells:
    """A text as windows are cut from it. cell: int32 [T]. begin, end: int64 [T], of the stretch round each token, int32 where T allows.

    hashes: uint64 [T + 1], rolling: windows of equal length with equal tokens have equal differences.
    """

    cell: np.ndarray
    begin: np.ndarray
    end: np.ndarray
    hashes: np.ndarray
    powers: np.ndarray

    @classmethod
    def of(cls, entries: np.ndarray, first: np.ndarray) -> "Cells":
        """entries: int [T], which token stands where. first: int64 [s], where stretches begin."""
        n_tokens = len(entries)
        lengths = np.diff(np.append(first, n_tokens))
        begin = np.repeat(first, lengths).astype(np.int32)
        end = np.repeat(first + lengths, lengths).astype(np.int32)
        place = np.arange(n_tokens, dtype=np.int32)
        new = (place - begin) % LENGTH == 0
        powers = np.concatenate([np.ones(1, np.uint64), np.cumprod(np.full(LENGTH, _ROLL))])
        return cls((np.cumsum(new) - 1).astype(np.int32), begin, end, _hashes(entries), powers)

    def windows(self, peaks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """peaks int [m] -> start int64 [m], length int64 [m]."""
        begin, end = self.begin[peaks].astype(np.int64), self.end[peaks].astype(np.int64)
        start = np.maximum(np.minimum(peaks - BEFORE, end - LENGTH), begin)
        return start, np.minimum(end - start, LENGTH)

    def content(self, start: np.ndarray, length: np.ndarray) -> np.ndarray:
        """A number for the tokens of each window, uint64 [m]."""
        return self.hashes[start + length] - self.hashes[start] * self.powers[length] + length.astype(np.uint64)


def _hashes(entries: np.ndarray) -> np.ndarray:
    """h(t + 1) = h(t) B + mixed(entry t), modulo 2^64, for all t, in blocks: within one, h(t) = B^t (h(0) + sum of mixed / B^(s+1))."""
    mixed = _mixed(entries)
    inverse = np.uint64(pow(int(_ROLL), -1, 1 << 64))
    steps = len(mixed)
    with np.errstate(over="ignore"):
        # B is odd, so that it has an inverse, and sums may wrap
        forward = np.cumprod(np.full(steps, _ROLL))
        backward = np.cumprod(np.full(steps, inverse))
        return np.concatenate([np.zeros(1, np.uint64), forward * np.cumsum(mixed * backward)])


def _mixed(entries: np.ndarray) -> np.ndarray:
    """splitmix64 of each number."""
    with np.errstate(over="ignore"):
        x = (np.asarray(entries).astype(np.uint64) + np.uint64(1)) * _ROLL
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return x ^ (x >> np.uint64(31))


@dataclass(frozen=True)
class Chosen:
    """Windows of b latents, strong first within each. latent: int64 [w], rising, 0 to b - 1. starts, lengths, peaks (tokens): int64 [w]."""

    latent: np.ndarray
    starts: np.ndarray
    lengths: np.ndarray
    peaks: np.ndarray
    deciles: np.ndarray


def choose(latent: np.ndarray, tokens: np.ndarray, values: np.ndarray, cells: Cells, count: int = WINDOWS) -> Chosen:
    """latent int [c] rising, tokens int [c] rising within a latent, values float32 [c]: the firings of some latents."""
    peak = _peaks(latent, cells.cell[tokens], values)
    latent, place, value = latent[peak], tokens[peak].astype(np.int64), values[peak]
    # one whole number to sort by: activations are above 0, so their bits rise with them; stable, so that the first of equals stays first
    order = np.argsort(
        latent.astype(np.uint64) << 32 | (0xFFFFFFFF - value.view(np.uint32)).astype(np.uint64), kind="stable"
    )
    latent, place = latent[order], place[order]
    starts, lengths = cells.windows(place)
    with np.errstate(over="ignore"):
        named = cells.content(starts, lengths) + _mixed(latent)
    new = np.sort(np.unique(named, return_index=True)[1])
    latent, place, starts, lengths = latent[new], place[new], starts[new], lengths[new]
    rank, size = _ranks(latent)
    decile = 9 - rank * 10 // np.maximum(size, 1)
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


def _ranks(latent: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Place of each entry among its latent's, from 0, and how many its latent has. latent: rising."""
    _, first, sizes = np.unique(latent, return_index=True, return_counts=True)
    return np.arange(len(latent)) - np.repeat(first, sizes), np.repeat(sizes, sizes)


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
    ends = (
        np.concatenate([np.flatnonzero(np.diff(latent)) + 1, [len(latent)]]).astype(np.int64)
        if len(latent)
        else np.zeros(0, np.int64)
    )
    starts = np.concatenate([[0], ends[:-1]]).astype(np.int64) if len(latent) else ends
    have = np.add.reduceat(kept.astype(np.int64), starts) if len(latent) else starts
    missing = np.repeat(count - have, ends - starts)
    waiting = np.cumsum(~kept)
    waiting -= np.repeat(waiting[starts] - ~kept[starts], ends - starts) if len(latent) else 0
    return kept | (~kept & (waiting <= missing))


def pack(
    chosen: Chosen, n_latents: int, latent: np.ndarray, tokens: np.ndarray, values: np.ndarray, n_tokens: int
) -> Iterator[bytes]:
    """The blob of each of n latents in order; the firings as given to `choose`."""
    place = latent.astype(np.int64) * n_tokens + tokens
    at = chosen.latent * n_tokens + chosen.starts
    low, high = np.searchsorted(place, at), np.searchsorted(place, at + chosen.lengths)
    fired = high - low
    entries = (
        np.repeat(low - np.concatenate([[0], np.cumsum(fired)[:-1]]), fired) + np.arange(fired.sum())
        if len(fired)
        else low
    )
    offsets = (tokens[entries] - np.repeat(chosen.starts, fired)).astype(np.uint8)
    shown = values[entries].astype("<f4")
    starts = chosen.starts.astype("<i4")
    small = [array.astype(np.uint8) for array in (chosen.lengths, chosen.peaks - chosen.starts, chosen.deciles, fired)]
    of_latent = np.searchsorted(chosen.latent, np.arange(n_latents + 1))
    of_entry = np.concatenate([[0], np.cumsum(fired)])[of_latent].tolist()
    of_latent = of_latent.tolist()
    for i in range(n_latents):
        a, b, c, d = of_latent[i], of_latent[i + 1], of_entry[i], of_entry[i + 1]
        parts = [np.uint16(b - a).tobytes(), starts[a:b].tobytes(), *(array[a:b].tobytes() for array in small)]
        yield zlib.compress(b"".join([*parts, offsets[c:d].tobytes(), shown[c:d].tobytes()]), 1)


@dataclass(frozen=True)
class Window:
    """One window. start: token of the split. values: float, of each token, 0 where silent."""

    start: int
    length: int
    peak: int
    decile: int
    values: list[float]


def unpack(blob: bytes) -> list[Window]:
    data = unzipped(blob)
    count = int(np.frombuffer(data, "<u2", 1)[0])
    starts = np.frombuffer(data, "<i4", count, 2)
    lengths, peaks, deciles, fired = np.frombuffer(data, np.uint8, 4 * count, 2 + 4 * count).reshape(4, count)
    total, at = int(fired.sum()), 2 + 8 * count
    offsets = np.frombuffer(data, np.uint8, total, at).tolist()
    values = np.frombuffer(data, "<f4", total, at + total)
    values, found, entry = [short(value) for value in values.tolist()], [], 0
    for start, length, peak, decile, many in zip(
        *(array.tolist() for array in (starts, lengths, peaks, deciles, fired)), strict=True
    ):
        # a whole 0 is half as long on its way to the page
        row: list[float] = [0] * length
        for place in range(entry, entry + many):
            row[offsets[place]] = values[place]
        entry += many
        found.append(Window(start, length, peak, decile, row))
    return found


def short(value: float) -> float:
    """Six digits: more than is shown of an activation, a share or a lift."""
    return float(f"{value:.6g}")
