"""Windows of one latent: activating ones by strength, and silent ones of three kinds, verified against all of the latent's firings.

An activating window's focus is its peak: the strongest firing in it, the first of equals. Peaks of a side, ordered by strength, are cut
into equal parts (deciles), and windows are drawn from all parts alike. Kinds of silent windows, all of the scoring side:
    random        any token
    same_token    a token with the id of the focus of one of the latent's scoring windows
    neighbour     a token on which one of the latents with the largest phi with this one fires
No two windows of a latent have the same tokens, so that text repeated in another document is not scored after it was explained.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from metasae.interp.windows import Text, WindowSpec
from metasae.measures.firing.by_latent import ByLatent

RANDOM, SAME_TOKEN, NEIGHBOUR = "random", "same_token", "neighbour"
KINDS = (RANDOM, SAME_TOKEN, NEIGHBOUR)
# Silent windows are looked for in so many rounds, each of so many draws per window still missing.
ROUNDS, DRAWS = 8, 4


@dataclass(frozen=True)
class Windows:
    """w windows of `length` tokens. starts, focus: int64 [w], tokens of the split. peaks: float32 [w], 0 where silent.

    strata: int8 [w], 0 for the weakest part of the latent's peaks; -1 where silent.
    """

    starts: np.ndarray
    focus: np.ndarray
    peaks: np.ndarray
    strata: np.ndarray
    length: int

    def __len__(self) -> int:
        return len(self.starts)


@dataclass(frozen=True)
class Peaks:
    """The activating windows that one latent has on each side: starts, focus int64 [c], values float32 [c], scoring bool [c]."""

    starts: np.ndarray
    focus: np.ndarray
    values: np.ndarray
    scoring: np.ndarray


def peaks_of(text: Text, tokens: np.ndarray, values: np.ndarray, spec: WindowSpec) -> Peaks:
    """tokens int [c], rising, values float32 [c]: one latent's firings -> those that are the peak of their own window."""
    starts, whole = text.windows(tokens, spec.length, spec.position)
    low, high = np.searchsorted(tokens, starts), np.searchsorted(tokens, starts + spec.length)
    place = np.arange(len(tokens))
    kept = whole & (values > _largest(values, low, place)) & (values >= _largest(values, place, high))
    return Peaks(
        starts[kept], np.asarray(tokens)[kept].astype(np.int64), np.asarray(values)[kept], text.scoring[starts[kept]]
    )


def _largest(values: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """max of values[low : high] for every pair of ends, -inf for an empty range."""
    if not len(values):
        return np.zeros(0, np.float32)
    ends = np.stack([low, high], axis=1).ravel()
    # reduceat gives values[low] for an empty range, and wants every end inside the array
    found = np.maximum.reduceat(np.append(values, -np.inf), ends)[::2]
    return np.where(low < high, found, -np.inf)


def draw_activating(
    text: Text, peaks: Peaks, scoring: bool, count: int, spec: WindowSpec, rng: np.random.Generator, seen: set[bytes]
) -> Windows:
    """Up to `count` windows of one side, from all parts of its peaks alike; where a part runs out the others give more.

    seen: the tokens of windows drawn before, which are not drawn again; those drawn here are added.
    """
    here = np.flatnonzero(peaks.scoring == scoring)
    ordered = here[np.argsort(peaks.values[here], kind="stable")]
    chosen: list[tuple[int, int]] = []
    for row, stratum in in_turns(np.array_split(ordered, spec.strata), rng):
        if len(chosen) == count:
            break
        if _is_new(text, peaks.starts[row], spec.length, seen):
            chosen.append((row, stratum))
    rows, strata = np.array(chosen, np.int64).reshape(-1, 2).T
    return Windows(peaks.starts[rows], peaks.focus[rows], peaks.values[rows], strata.astype(np.int8), spec.length)


def contents_of(text: Text, windows: Windows) -> set[bytes]:
    """The tokens of each window, as `seen` has them."""
    return {_content(text, start, windows.length) for start in windows.starts}


def in_turns(parts: Sequence[np.ndarray], rng: np.random.Generator) -> Iterator[tuple[int, int]]:
    """(entry, number of its part): one entry of every part, then another of every part ...; parts and entries in random order."""
    shuffled = [rng.permutation(part).tolist() for part in parts]
    for turn in range(max(map(len, shuffled), default=0)):
        # a new order each turn, so that a count that stops amid one favours no part
        for number in rng.permutation(len(shuffled)).tolist():
            if turn < len(shuffled[number]):
                yield shuffled[number][turn], number


def draw_silent(
    text: Text,
    kind: str,
    latent: int,
    view: ByLatent,
    scored: Windows,
    neighbours: np.ndarray,
    spec: WindowSpec,
    rng: np.random.Generator,
    seen: set[bytes],
) -> Windows:
    """Up to spec.silent windows of a kind in which the latent fires on no token. scored: its activating scoring windows.

    neighbours: the latents closest to it. seen: as in `draw_activating`.
    """
    fires = view.latent(latent)[0]
    pools = _pools(text, kind, view, scored, neighbours)
    starts, focus = [], []
    for _ in range(ROUNDS if pools else 0):
        missing = spec.silent - len(starts)
        drawn = _from_pools(pools, DRAWS * missing, rng)
        begins, whole = text.windows(drawn, spec.length, spec.position)
        silent = np.searchsorted(fires, begins) == np.searchsorted(fires, begins + spec.length)
        for place in np.flatnonzero(whole & silent):
            if len(starts) < spec.silent and _is_new(text, begins[place], spec.length, seen):
                starts.append(begins[place])
                focus.append(drawn[place])
        if len(starts) == spec.silent:
            break
    none = np.zeros(len(starts), np.float32)
    return Windows(
        np.array(starts, np.int64), np.array(focus, np.int64), none, np.full(len(starts), -1, np.int8), spec.length
    )


def _pools(text: Text, kind: str, view: ByLatent, scored: Windows, neighbours: np.ndarray) -> list[np.ndarray]:
    """Tokens from which silent windows are drawn: a pool is drawn, each alike likely, then one of its tokens."""
    if kind == RANDOM:
        pools = [text.scoring_tokens]
    elif kind == SAME_TOKEN:
        # a token that peaks in several windows is drawn as often
        pools = [text.scoring_with_id(int(number)) for number in text.tokens[scored.focus]]
    elif kind == NEIGHBOUR:
        fired = (view.latent(int(other))[0] for other in neighbours)
        pools = [tokens[text.scoring[tokens]] for tokens in fired]
    else:
        raise ValueError(f"no kind of silent windows '{kind}'")
    return [pool for pool in pools if len(pool)]


def _from_pools(pools: list[np.ndarray], count: int, rng: np.random.Generator) -> np.ndarray:
    """int64 [count]."""
    which = rng.integers(len(pools), size=count)
    share = rng.random(count)
    return np.array(
        [pools[pool][int(part * len(pools[pool]))] for pool, part in zip(which, share, strict=True)], np.int64
    )


def _is_new(text: Text, start: int, length: int, seen: set[bytes]) -> bool:
    """Whether no window with these tokens was seen; it is from now on."""
    content = _content(text, start, length)
    if content in seen:
        return False
    seen.add(content)
    return True


def _content(text: Text, start: int, length: int) -> bytes:
    return np.asarray(text.tokens[start : start + length]).tobytes()
