"""Which latents of one SAE are split into several of another; merges are the same question asked the other way round.

A parent fires on tokens P; a set of children C of the other SAE splits it as well as
    score = coverage x (1 - overlap) x smallest share,
coverage = share of P with at least one child on, overlap = share of P with two or more, a child's share = share of P
with it alone on. An even split into two scores 1/2, into m 1/m: that is the ceiling. A latent that is simply kept
scores nothing: a single child is no split, and beside a child that covers all of P no other is ever alone. Children are
chosen on every second block of documents and scored on the others. The score of two solo SAEs with different seeds is
the base rate: latents split between seeds, too. The paper's ranking (arXiv 2604.03436) is beside it.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import combinations

import numpy as np

from metasae.measures.cofiring.counts import ratio
from metasae.measures.cofiring.partners import Partners, top_partners
from metasae.measures.firing.by_latent import ByLatent, by_latent
from metasae.measures.firing.firings import Firings, block_spans, document_blocks
from metasae.progress.progress import SILENT, Progress, tracked

CANDIDATES = 10
MAX_CHILDREN = 5
MIN_PHI = 0.2
MIN_FIRINGS = 20
SCORES_ABOVE = (0.1, 0.25)
TOP = 100
PARENTS = 2048
# Latents that fire more often have no place in the paper's ranking.
PAPER_MAX_RATE = 0.05


@dataclass(frozen=True)
class FeatureSplit:
    """A parent and its children, largest phi first.

    phi: of each child with the parent, on the tokens on which it was chosen. coverage, overlap, shares, score, firings
    (of the parent): on the tokens that were held out.
    """

    parent: int
    children: tuple[int, ...]
    phi: tuple[float, ...]
    coverage: float
    overlap: float
    shares: tuple[float, ...]
    score: float
    firings: int


@dataclass(frozen=True)
class FeatureSplits:
    """All feature splits between two SAEs, best first; parents without one count with score 0.

    n_parents: parents scored. too_rare: parents left out, as they fire on fewer than 20 tokens of either half.
    """

    ranked: tuple[FeatureSplit, ...]
    n_parents: int
    too_rare: int

    def as_dict(self, count: int = TOP) -> dict:
        """The summary and the first `count` splits.

        n_above_X: parents with a score above X; share_above_X: the same as a share of n_parents. mean_score: over all
        parents; mean_top: over the best 100. None without parents.
        """
        scores = [split.score for split in self.ranked]
        n_above = {limit: sum(score > limit for score in scores) for limit in SCORES_ABOVE}
        return {
            "n_parents": self.n_parents,
            "too_rare": self.too_rare,
            **{f"n_above_{limit:g}": number for limit, number in n_above.items()},
            **{f"share_above_{limit:g}": ratio(number, self.n_parents) for limit, number in n_above.items()},
            "mean_score": ratio(math.fsum(scores), self.n_parents),
            "mean_top": ratio(math.fsum(scores[:TOP]), min(TOP, self.n_parents)),
            "ranked": [asdict(split) for split in self.ranked[:count]],
        }


def find_splits(parents: Firings, children: Firings, progress: Progress = SILENT) -> FeatureSplits:
    """Splits of the latents of `parents` into latents of `children`, two SAEs over the same tokens; swap the two for
    merges.

    Children are the best set of 2 to 5 among the 10 latents with the largest phi with the parent, phi at least 0.2
    each, ties to the smaller set. With a single block nothing is held out, and every parent is too rare. Memory: about
    14 bytes per firing of each SAE. Raises ValueError when the tokens of the two SAEs differ.
    """
    blocks = document_blocks(parents.documents)
    partners = top_partners(parents, CANDIDATES, children, spans=block_spans(blocks)[::2], progress=progress)
    held_out = blocks % 2 == 1
    by_parent, by_child = by_latent(parents), by_latent(children)
    # largest phi first, so the usable candidates come first
    usable = np.count_nonzero(partners.phi >= MIN_PHI, axis=1)
    candidates = [row[:number] for row, number in zip(partners.latents, usable, strict=True)]
    sets = _sets()
    splits, n_parents = [], 0
    latents = np.arange(parents.n_latents)
    some = np.split(latents, latents[PARENTS::PARENTS])
    for these in tracked(progress, some, "latents that split", parents.n_latents, "latents"):
        chosen_on, scored_on = _histograms(by_parent, by_child, held_out, these, candidates)
        enough = (chosen_on.sum(1) >= MIN_FIRINGS) & (scored_on.sum(1) >= MIN_FIRINGS)
        n_parents += int(enough.sum())
        able = enough & (usable[these] >= 2)
        splits += _best_sets(these[able], chosen_on[able], scored_on[able], partners, sets)
    ranked = sorted(splits, key=lambda split: (-split.score, split.parent))
    return FeatureSplits(tuple(ranked), n_parents, parents.n_latents - n_parents)


def paper_ranking(
    parents: Firings, children: Firings, count: int = TOP, progress: Progress = SILENT
) -> list[dict[str, int | list]]:
    """The first `count` parents by the second-largest phi of a latent of the other SAE, ties to the lower; arXiv
    2604.03436.

    {"parent", "children", "phi"}, with the two latents of the largest phi. Latents of either SAE that fire on more than
    5% of the tokens are left out. Raises ValueError when the tokens differ.
    """
    partners = top_partners(parents, 2, children, max_rate=PAPER_MAX_RATE, progress=progress)
    have_two = np.flatnonzero(partners.latents[:, 1] >= 0)
    order = have_two[np.argsort(-partners.phi[have_two, 1], kind="stable")][:count]
    return [
        {"parent": int(parent), "children": partners.latents[parent].tolist(), "phi": partners.phi[parent].tolist()}
        for parent in order
    ]


def _histograms(
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


@dataclass(frozen=True)
class _Sets:
    """All sets of 2 to MAX_CHILDREN candidates, small ones first.

    For each set and pattern, as 0 or 1: one, two [sets, patterns], at least one or two members are on; alone [patterns,
    members of all sets], that member is the only one on. first: int [sets], where the members of each set begin.
    """

    members: list[tuple[int, ...]]
    one: np.ndarray
    two: np.ndarray
    alone: np.ndarray
    first: np.ndarray

    def scores(self, histograms: np.ndarray) -> np.ndarray:
        """Score of every set for every parent, float64 [p, sets], from token counts by pattern."""
        tokens = histograms.sum(1, keepdims=True).astype(np.float64)
        # whole numbers in float64, so the products are exact, and far faster than in int64
        counts = histograms.astype(np.float64)
        smallest = np.minimum.reduceat(counts @ self.alone, self.first, axis=1) / tokens
        return (counts @ self.one.T / tokens) * (1 - counts @ self.two.T / tokens) * smallest


def _sets() -> _Sets:
    members = [chosen for size in range(2, MAX_CHILDREN + 1) for chosen in combinations(range(CANDIDATES), size)]
    bits = np.arange(2**CANDIDATES)[:, None] >> np.arange(CANDIDATES) & 1
    on = np.stack([bits[:, chosen].sum(1) for chosen in members])
    alone = np.concatenate([bits[:, chosen] * (on[row] == 1)[:, None] for row, chosen in enumerate(members)], axis=1)
    first = np.cumsum([0, *map(len, members[:-1])])
    return _Sets(members, (on >= 1).astype(np.float64), (on >= 2).astype(np.float64), alone.astype(np.float64), first)


def _best_sets(
    parents: np.ndarray, chosen_on: np.ndarray, scored_on: np.ndarray, partners: Partners, sets: _Sets
) -> list[FeatureSplit]:
    """The best set of each parent by its first histogram, scored by the second; without those that score 0 there."""
    splits = []
    for parent, best, counts in zip(parents, sets.scores(chosen_on).argmax(1), scored_on, strict=True):
        members, tokens = list(sets.members[best]), int(counts.sum())
        coverage, overlap = float(counts @ sets.one[best]) / tokens, float(counts @ sets.two[best]) / tokens
        alone = sets.alone[:, sets.first[best] : sets.first[best] + len(members)]
        shares = tuple((counts @ alone / tokens).tolist())
        score = coverage * (1 - overlap) * min(shares)
        if score > 0:
            children, phi = partners.latents[parent, members].tolist(), partners.phi[parent, members].tolist()
            split = FeatureSplit(int(parent), tuple(children), tuple(phi), coverage, overlap, shares, score, tokens)
            splits.append(split)
    return splits
