"""Chooses the children of a parent: sets of candidates, and how well each set splits the parent's firings.

A parent's tokens are counted by pattern, bit s of a pattern for candidate s. These counts give the number of tokens on
which no member of a set fires, for all 1024 sets at once; every share of the score is a difference of two such numbers.
"""

from collections.abc import Sequence
from itertools import combinations
from typing import NamedTuple

import numpy as np

from metasae.measures.cofiring.survival import SAME
from metasae.measures.firing.by_latent import ByLatent

CANDIDATES = 10
MAX_CHILDREN = 5
# All sets of 2 to 5 candidates, small ones first: for each size, int [sets, size].
BY_SIZE = [np.array(list(combinations(range(CANDIDATES), size))) for size in range(2, MAX_CHILDREN + 1)]
SETS = [tuple(chosen) for of_size in BY_SIZE for chosen in of_size.tolist()]


class Shares(NamedTuple):
    """Shares of a parent's tokens, float64 [p, sets]: with at least one member of the set on, with two or more, and
    with one member alone, for each member [members, p, sets].
    """

    coverage: np.ndarray
    overlap: np.ndarray
    alone: np.ndarray

    def score(self) -> np.ndarray:
        """float64 [p, sets]."""
        return self.coverage * (1 - self.overlap) * self.alone.min(0)


def pattern_counts(
    parents: ByLatent, children: ByLatent, held_out: np.ndarray, latents: np.ndarray, candidates: Sequence[np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """Which of a parent's candidates fire together with it: its tokens by pattern, bit s of a pattern for candidate s.

    Returns int64 [p, 2**CANDIDATES] of the tokens to choose on and of those held out.
    """
    chosen_on, scored_on = np.zeros((2, len(latents), 2**CANDIDATES), np.int64)
    on = np.zeros(len(held_out), np.uint16)
    for row, latent in enumerate(latents):
        tokens, _ = parents.latent(latent)
        lists = [children.latent(child)[0] for child in candidates[latent]]
        for slot, child_tokens in enumerate(lists):
            on[child_tokens] |= 1 << slot
        pattern, scored = on[tokens], held_out[tokens]
        for child_tokens in lists:
            on[child_tokens] = 0
        chosen_on[row] = np.bincount(pattern[~scored], minlength=2**CANDIDATES)
        scored_on[row] = np.bincount(pattern[scored], minlength=2**CANDIDATES)
    return chosen_on, scored_on


def silent_counts(patterns: np.ndarray) -> np.ndarray:
    """On how many of a parent's tokens no member of a set fires, float64 [p, 2**CANDIDATES], a set being its bits.

    patterns: int64 [p, 2**CANDIDATES], from `pattern_counts`.
    """
    # tokens of every pattern within a set: for one candidate after the other, those without it are added to those with
    within = np.array(patterns, np.float64, order="C")
    for slot in range(CANDIDATES):
        halves = within.reshape(len(within), 2 ** (CANDIDATES - 1 - slot), 2, 2**slot)
        halves[:, :, 1] += halves[:, :, 0]
    # a set is silent where the pattern is within all others
    return within[:, ::-1]


def shares_of(silent: np.ndarray, members: np.ndarray) -> Shares:
    """The shares of every set. silent: from `silent_counts`. members: int [sets, members], sets of one size. Sums of
    whole numbers, so exact.
    """
    bits = 1 << members
    whole = bits.sum(1)
    tokens, none = silent[:, :1], silent[:, whole]
    alone = np.stack([silent[:, whole - bit] - none for bit in bits.T])
    return Shares((tokens - none) / tokens, (tokens - none - alone.sum(0)) / tokens, alone / tokens)


def set_scores(patterns: np.ndarray, phi: np.ndarray, child_phi: np.ndarray) -> np.ndarray:
    """Score of every set for every parent, float64 [p, sets].

    patterns: from `pattern_counts`. phi: float64 [p, CANDIDATES], of each candidate with the parent, the largest first,
    at least 0. child_phi: float64 [p, CANDIDATES], of each candidate with its counterpart.
    """
    silent, is_kept = silent_counts(patterns), phi[:, :1] > SAME
    scores = []
    for members in BY_SIZE:
        left_out = [min(set(range(CANDIDATES)).difference(chosen)) for chosen in members.tolist()]
        # the parent lives on as the closest latent that is no child, or as the closest of all where that is the parent
        lives_on = np.where(is_kept, phi[:, :1], phi[:, left_out])
        already = child_phi[:, members].max(2)
        scores.append(shares_of(silent, members).score() * (1 - lives_on) * (1 - already))
    return np.concatenate(scores, axis=1)
