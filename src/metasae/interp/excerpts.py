"""Cuts text into windows of one length, each within one document; every document is on one side only.

A window is tokens [start, start + L) of the split. A focus token has exactly one window:
    grid      its document, cut into windows of L from its first token on
    centre    L // 2 tokens before the focus
    end       the focus is the last token
A focus whose window would cross the end of its document has none. On the grid a window does not tell where its focus
is, and all SAEs share the same windows. Explanations are made from the documents of one side and scored on those of the
other.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from metasae.data.text.pieces import REACH, Pieces

POSITIONS = GRID, CENTRE, END = "grid", "centre", "end"


@dataclass(frozen=True)
class WindowSpec:
    """How windows are cut and how many a latent needs.

    length: tokens of a window. position: where the focus stands, one of POSITIONS. train, score: activating windows per
    latent to explain from and to score on. silent: windows per latent and kind in which it does not fire. strata: the
    number of equal parts of the latent's peaks, weak to strong, from which activating windows are drawn.
    """

    length: int = 32
    position: str = GRID
    train: int = 20
    score: int = 20
    silent: int = 20
    strata: int = 10


class Text:
    """The tokens of a split, the side of each, and the window of each.

    documents, tokens, positions: int32 [T], as in `Firings`. string_of: int64 [m] -> the text of these tokens of the
    split, one string each, which joined give readable text.
    """

    def __init__(
        self,
        documents: np.ndarray,
        tokens: np.ndarray,
        positions: np.ndarray,
        string_of: Callable[[np.ndarray], list[str]],
        seed: int,
    ):
        """Documents are put on sides by `seed`: in random order, the first half of the text is for explaining, the rest
        for scoring.
        """
        # a memory-map as a plain array: many small slices are cut from it
        self.tokens, self.documents, self._string_of = np.asarray(tokens), np.asarray(documents), string_of
        breaks = (np.diff(documents) != 0) | (np.diff(positions) != 1)
        edges = np.flatnonzero(breaks) + 1
        starts, ends = np.concatenate([[0], edges]), np.append(edges, len(tokens))
        # of every token, where its stretch begins and ends: windows are asked for far more often than there are tokens
        self._first, self._last = np.repeat(starts, ends - starts), np.repeat(ends, ends - starts)
        names, number, sizes = np.unique(self.documents, return_inverse=True, return_counts=True)
        order = np.random.default_rng(seed).permutation(len(names))
        before = (np.cumsum(sizes[order]) - sizes[order])[np.argsort(order)]
        # bool [T]: which tokens are to score on
        self.scoring = (before >= len(documents) / 2)[number]

    def windows(self, focus: np.ndarray, length: int, position: str) -> tuple[np.ndarray, np.ndarray]:
        """focus int [m] -> (start int64 [m], whole bool [m]: the window lies within the document)."""
        focus = np.asarray(focus, np.int64)
        first, last = self._first[focus], self._last[focus]
        before = {GRID: (focus - first) % length, CENTRE: length // 2, END: length - 1}[position]
        start = focus - before
        return start, (start >= first) & (start + length <= last)

    def strings(self, start: int, length: int) -> list[str]:
        """The text of each token of a window."""
        return self._string_of(np.arange(start, start + length))

    def content(self, start: int, length: int) -> bytes:
        """The tokens of a window, alike for windows of the same text."""
        return self.tokens[start : start + length].tobytes()

    @cached_property
    def scoring_tokens(self) -> np.ndarray:
        """int64 [s], rising: the tokens of documents to score on."""
        return np.flatnonzero(self.scoring)

    @cached_property
    def scoring_by_id(self) -> dict[int, np.ndarray]:
        """Id in the vocabulary -> the tokens to score on with this id, int64 [c], rising."""
        return self.by_id(self.scoring_tokens)

    def by_id(self, places: np.ndarray) -> dict[int, np.ndarray]:
        """Id in the vocabulary -> those of these tokens that have it, in their order."""
        ids = self.tokens[places]
        order = np.argsort(ids, kind="stable")
        numbers, starts = np.unique(ids[order], return_index=True)
        # without places there is one empty group and no number
        return dict(zip(numbers.tolist(), np.split(places[order], starts[1:]), strict=False))


def token_strings(
    tokenizer, tokens: np.ndarray, documents: np.ndarray, positions: np.ndarray
) -> Callable[[np.ndarray], list[str]]:
    """The pieces of tokens of a split, as `metasae.data.text.pieces` cuts text.

    tokens, documents, positions: int [T], as in `Firings`. Tokens that follow each other are one window, of which a
    character that begins or ends outside it is shown whole.
    """
    # in a plain array, as many small slices are cut from it
    pieces, tokens = Pieces(tokenizer), np.asarray(tokens)
    breaks = np.append(np.flatnonzero((np.diff(documents) != 0) | (np.diff(positions) != 1)) + 1, len(tokens))

    def strings(places: np.ndarray) -> list[str]:
        shown = []
        ends = np.flatnonzero((np.diff(places) != 1) | np.isin(places[1:], breaks)) + 1
        for run in np.split(np.asarray(places), ends):
            if not len(run):
                continue
            start, end = int(run[0]), int(run[-1]) + 1
            which = int(np.searchsorted(breaks, start, side="right"))
            first, last = int(breaks[which - 1]) if which else 0, int(breaks[which])
            low, high = max(first, start - REACH), min(last, end + REACH)
            shown += pieces.window(tokens[low:high], start - low, end - low)
        return shown

    return strings


def planted_strings(split) -> Callable[[np.ndarray], list[str]]:
    """The text of tokens of a planted world: ` w3/f12:0.83` is word 3 with feature 12 on at 0.83, ` t104` another token
    with none.
    """
    world, activations = split.world, split.activations
    n_words = int(world.word.max(initial=-1)) + 1

    def string_of(place: int) -> str:
        entries = slice(activations.indptr[place], activations.indptr[place + 1])
        features = zip(activations.indices[entries], activations.data[entries], strict=True)
        token = int(split.tokens[place])
        kind = "w" if token < n_words else "t"
        return f" {kind}{token}" + "".join(f"/f{feature}:{strength:.2f}" for feature, strength in features)

    return lambda places: [string_of(int(place)) for place in places]
