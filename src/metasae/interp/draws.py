"""Windows of latents: activating ones by strength, and silent ones of three kinds, verified against all firings.

An activating window's focus is its peak: the strongest firing in it, the first of equals. Peaks of a side, ordered by
strength, are cut into equal strata (deciles), and windows are drawn from all strata alike. Kinds of silent windows, all
of the scoring side:
    random        any token
    same_token    a token with the id of the focus of one of the latent's scoring windows
    neighbour     a token on which one of the latents with the largest phi with this one fires
No two windows of a latent have the same tokens, so that text repeated in another document is not scored after it was
explained.

A latent is covered when both sides have as many activating windows as the spec wants. What fires rarely, in few
documents or on repeated text is not covered. Coverage is reported by firing rate, as scores are of covered latents
only.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from metasae.interp.excerpts import Text, WindowSpec
from metasae.measures.firing.by_latent import ByLatent
from metasae.progress.progress import SILENT, Progress

KINDS = RANDOM, SAME_TOKEN, NEIGHBOUR = "random", "same_token", "neighbour"
# The number of rounds in which silent windows are looked for, and the draws of a round per window still missing.
ROUNDS, DRAWS = 8, 4
DECILES = 10


@dataclass(frozen=True)
class Windows:
    """w windows of `length` tokens. starts, focus: int64 [w], tokens of the split. peaks: float32 [w], 0 where silent.

    strata: int8 [w], 0 for the weakest stratum of the latent's peaks; -1 where silent.
    """

    starts: np.ndarray
    focus: np.ndarray
    peaks: np.ndarray
    strata: np.ndarray
    length: int

    def __len__(self) -> int:
        return len(self.starts)


@dataclass(frozen=True)
class LatentWindows:
    """The windows of one latent. train, score: activating windows of the two sides. silent: kind -> windows of the
    scoring side.
    """

    latent: int
    train: Windows
    score: Windows
    silent: dict[str, Windows]


def activating_windows(
    text: Text, view: ByLatent, spec: WindowSpec, seed: int, progress: Progress = SILENT
) -> tuple[dict[int, LatentWindows], dict]:
    """The activating windows of every covered latent, without silent ones yet, and the coverage as interp.json has it.

    The coverage says how many latents have enough windows. live: latents that fire at all. too_few_train,
    too_few_score: live latents that lack windows on that side. by_firing_rate: live latents ordered by firing rate and
    cut into equal groups, of each the lowest and highest rate, live and covered.
    """
    counts = view.counts()
    live = np.flatnonzero(counts)
    drawn = []
    with progress.task("drawing windows", len(live), "latents") as task:
        for latent in live.tolist():
            drawn.append(latent_windows(text, view, latent, spec, seed))
            task.advance(1)
    lacks_train = np.array([len(windows.train) < spec.train for windows in drawn], bool)
    lacks_score = np.array([len(windows.score) < spec.score for windows in drawn], bool)
    covered = ~(lacks_train | lacks_score)
    coverage = {
        "n_latents": view.n_latents,
        "live": len(live),
        "covered": int(covered.sum()),
        "share_covered": float(covered.mean()) if len(live) else None,
        "too_few_train": int(lacks_train.sum()),
        "too_few_score": int(lacks_score.sum()),
        "by_firing_rate": _deciles(counts[live] / view.n_tokens, covered),
    }
    return {drawn[row].latent: drawn[row] for row in np.flatnonzero(covered)}, coverage


def latent_windows(text: Text, view: ByLatent, latent: int, spec: WindowSpec, seed: int) -> LatentWindows:
    """The activating windows of a latent, as many of each side as there are and the spec wants; no silent ones."""
    rng, drawn = np.random.default_rng([seed, latent]), set()
    peaks = peaks_of(text, *view.latent(latent), spec)
    train = draw_activating(text, peaks, False, spec.train, spec, rng, drawn)
    return LatentWindows(latent, train, draw_activating(text, peaks, True, spec.score, spec, rng, drawn), {})


def with_silent(
    text: Text, view: ByLatent, windows: LatentWindows, neighbours: np.ndarray, spec: WindowSpec, seed: int
) -> LatentWindows:
    """The same with up to spec.silent windows of every silent kind.

    neighbours: int [p], the latents with the largest phi with this one, -1 for none.
    """
    drawn = contents_of(text, windows.train) | contents_of(text, windows.score)
    fired = [view.latent(int(other))[0] for other in neighbours if other >= 0]
    pools = {
        RANDOM: [text.scoring_tokens],
        # a token that is the peak of several windows has as many pools
        SAME_TOKEN: [text.scoring_by_id[number] for number in text.tokens[windows.score.focus].tolist()],
        NEIGHBOUR: [tokens[text.scoring[tokens]] for tokens in fired],
    }
    silent = {}
    for number, kind in enumerate(pools):
        rng = np.random.default_rng([seed, windows.latent, number])
        silent[kind] = draw_silent(text, pools[kind], view.latent(windows.latent)[0], spec, rng, drawn)
    return replace(windows, silent=silent)


def _deciles(rates: np.ndarray, covered: np.ndarray) -> list[dict]:
    """Live and covered latents by firing rate, in equal groups. rates, covered: [l], of the live latents."""
    return [
        {
            "lowest_rate": float(rates[decile[0]]),
            "highest_rate": float(rates[decile[-1]]),
            "live": len(decile),
            "covered": int(covered[decile].sum()),
        }
        for decile in np.array_split(np.argsort(rates, kind="stable"), DECILES)
        if len(decile)
    ]


def peaks_of(text: Text, tokens: np.ndarray, values: np.ndarray, spec: WindowSpec) -> Windows:
    """tokens int [c], rising, values float32 [c]: one latent's firings -> the windows of those that are the peak of
    their own.

    Their strata are those of a side, so they have none yet (-1).
    """
    tokens, values = np.asarray(tokens), np.asarray(values)
    starts, whole = text.windows(tokens, spec.length, spec.position)
    low, high = np.searchsorted(tokens, starts), np.searchsorted(tokens, starts + spec.length)
    place = np.arange(len(tokens))
    is_peak = whole & (values > _largest(values, low, place)) & (values >= _largest(values, place, high))
    strata = np.full(is_peak.sum(), -1, np.int8)
    return Windows(starts[is_peak], tokens[is_peak].astype(np.int64), values[is_peak], strata, spec.length)


def _largest(values: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """max of values[low : high] for every pair of ends, -inf for an empty range."""
    ends = np.stack([low, high], axis=1).ravel()
    # reduceat gives values[low] for an empty range, and wants every end inside the array
    largest = np.maximum.reduceat(np.append(values, -np.inf), ends)[::2]
    return np.where(low < high, largest, -np.inf)


def draw_activating(
    text: Text, peaks: Windows, scoring: bool, count: int, spec: WindowSpec, rng: np.random.Generator, drawn: set[bytes]
) -> Windows:
    """Draws up to `count` windows of one side, equally many from all strata of its peaks; where a stratum runs out, the
    others give more.

    drawn: the tokens of windows drawn before, which are not drawn again; those drawn here are added.
    """
    here = np.flatnonzero(text.scoring[peaks.starts] == scoring)
    ordered = here[np.argsort(peaks.peaks[here], kind="stable")]
    chosen: list[tuple[int, int]] = []
    for row, stratum in in_turns(np.array_split(ordered, spec.strata), rng):
        if len(chosen) == count:
            break
        if _is_new(text.content(peaks.starts[row], spec.length), drawn):
            chosen.append((row, stratum))
    rows, strata = np.array(chosen, np.int64).reshape(-1, 2).T
    return Windows(peaks.starts[rows], peaks.focus[rows], peaks.peaks[rows], strata.astype(np.int8), spec.length)


def contents_of(text: Text, windows: Windows) -> set[bytes]:
    """The tokens of each window, as `drawn` has them."""
    return {text.content(start, windows.length) for start in windows.starts}


def in_turns(groups: Sequence[np.ndarray], rng: np.random.Generator) -> Iterator[tuple[int, int]]:
    """(entry, number of its group): one entry of every group, then another of every group ...; groups and entries in
    random order.
    """
    shuffled = [rng.permutation(group).tolist() for group in groups]
    for turn in range(max(map(len, shuffled), default=0)):
        # a new order each turn, so that no group is favoured where the count ends in the middle of a turn
        for number in rng.permutation(len(shuffled)).tolist():
            if turn < len(shuffled[number]):
                yield shuffled[number][turn], number


def draw_silent(
    text: Text,
    pools: Sequence[np.ndarray],
    fires: np.ndarray,
    spec: WindowSpec,
    rng: np.random.Generator,
    drawn: set[bytes],
) -> Windows:
    """Draws up to spec.silent windows in which a latent fires on no token. A pool is drawn, all equally likely, then
    one of its tokens.

    fires: int [c], rising: the tokens on which it fires. drawn: as in `draw_activating`.
    """
    pools = [pool for pool in pools if len(pool)]
    starts, focus = [], []
    for _ in range(ROUNDS if pools else 0):
        count = DRAWS * (spec.silent - len(starts))
        chosen = zip(rng.integers(len(pools), size=count), rng.random(count), strict=True)
        tokens = np.array([pools[pool][int(share * len(pools[pool]))] for pool, share in chosen], np.int64)
        begins, whole = text.windows(tokens, spec.length, spec.position)
        silent = np.searchsorted(fires, begins) == np.searchsorted(fires, begins + spec.length)
        for place in np.flatnonzero(whole & silent):
            if len(starts) < spec.silent and _is_new(text.content(begins[place], spec.length), drawn):
                starts.append(begins[place])
                focus.append(tokens[place])
        if len(starts) == spec.silent:
            break
    peaks, strata = np.zeros(len(starts), np.float32), np.full(len(starts), -1, np.int8)
    return Windows(np.array(starts, np.int64), np.array(focus, np.int64), peaks, strata, spec.length)


def _is_new(content: bytes, drawn: set[bytes]) -> bool:
    """Whether no window with these tokens was drawn before; adds it to those drawn."""
    before = len(drawn)
    drawn.add(content)
    return len(drawn) > before
