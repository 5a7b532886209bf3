"""Finds latents of one SAE that are split into several of another; for merges the two SAEs change places.

A parent fires on tokens P; a set of children C of the other SAE splits it as well as
    score = coverage x (1 - overlap) x smallest share x (1 - phi_P) x (1 - phi_C).
coverage = share of P with at least one child on, overlap = share of P with two or more, a child's share = share of P
with it alone on. A split needs the parent gone and the children new. phi_P is the phi of the parent with its
counterpart, the latent of the other SAE that fires most like it; phi_C is the largest phi of a child with its own
counterpart in the parent's SAE (`survival.py`). An even split into two of a parent that is gone scores 1/2, into m 1/m:
that is the ceiling. A latent that is simply kept scores 0: a single child is not a split, and beside a child that
covers all of P no other child is ever on alone.

phi_C is the largest over the children because every child must be new. Where one child was there already, only the
other part is new: the parent got narrower, and no latent was split. With the smallest or the mean phi, one new child
would make up for old ones.

The phi of the parent with its own children is in neither factor, unless it is above .8. If it were, a clean split into
two would score .04, since either half has phi .71 with the whole. Two wide latents that happen to cover the parent's
tokens would score more.

Children are chosen on every second block of documents and scored on the others; either half has its own counterparts.
The score of two solo SAEs with different seeds is the base rate for solo and an SAE of another seed, since latents are
split between seeds, too. The paper's ranking (arXiv 2604.03436) is beside it.
"""

import math
from dataclasses import asdict, dataclass

import numpy as np

from metasae.measures.cofiring.counts import ratio
from metasae.measures.cofiring.partners import Partners, top_partners
from metasae.measures.cofiring.split_sets import (
    CANDIDATES,
    MAX_CHILDREN,
    SETS,
    pattern_counts,
    set_scores,
    shares_of,
    silent_counts,
)
from metasae.measures.cofiring.survival import Counterpart, Counterparts, at_least_0
from metasae.measures.firing.by_latent import by_latent
from metasae.measures.firing.firings import Firings, block_spans, document_blocks
from metasae.progress.progress import SILENT, Progress, tracked

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

    phi: of each child with the parent, on the tokens on which it was chosen. Everything else is on the tokens that were
    held out: coverage, overlap, shares, score, firings (of the parent), lives_on (the parent's counterpart in the
    children's SAE), already (each child's counterpart in the parent's SAE).
    """

    parent: int
    children: tuple[int, ...]
    phi: tuple[float, ...]
    coverage: float
    overlap: float
    shares: tuple[float, ...]
    lives_on: Counterpart
    already: tuple[Counterpart, ...]
    score: float
    firings: int

    @property
    def kept(self) -> bool:
        """Whether this is not a true split: the parent lives on (phi above .8), or every child was there already."""
        return self.lives_on.same or all(other.same for other in self.already)

    def as_dict(self) -> dict:
        """The fields and `kept`; a counterpart is {"latent", "phi", "same"}."""
        counterparts = {"lives_on": self.lives_on.as_dict(), "already": [other.as_dict() for other in self.already]}
        return {**asdict(self), **counterparts, "kept": self.kept}


@dataclass(frozen=True)
class FeatureSplits:
    """All feature splits between two SAEs, best first, with the `kept` ones after the others; parents without a split
    count with score 0.

    n_parents: parents scored. too_rare: parents left out, as they fire on fewer than 20 tokens of either half.
    """

    ranked: tuple[FeatureSplit, ...]
    n_parents: int
    too_rare: int

    def as_dict(self, count: int = TOP) -> dict:
        """The summary and the first `count` splits.

        n_above_X: parents with a score above X, which none that is `kept` has; share_above_X: the same as a share of
        n_parents. n_kept: splits that are `kept`. mean_score: over all parents; mean_top: over the best 100. None
        without parents.
        """
        scores = sorted((split.score for split in self.ranked), reverse=True)
        n_above = {limit: sum(score > limit for score in scores) for limit in SCORES_ABOVE}
        return {
            "n_parents": self.n_parents,
            "too_rare": self.too_rare,
            **{f"n_above_{limit:g}": number for limit, number in n_above.items()},
            **{f"share_above_{limit:g}": ratio(number, self.n_parents) for limit, number in n_above.items()},
            "n_kept": sum(split.kept for split in self.ranked),
            "mean_score": ratio(math.fsum(scores), self.n_parents),
            "mean_top": ratio(math.fsum(scores[:TOP]), min(TOP, self.n_parents)),
            "ranked": [split.as_dict() for split in self.ranked[:count]],
        }


def find_splits(parents: Firings, children: Firings, progress: Progress = SILENT) -> FeatureSplits:
    """Splits of the latents of `parents` into latents of `children`, two SAEs over the same tokens; swap the two for
    merges.

    Children are the best set of 2 to 5 among the 10 latents with the largest phi with the parent, phi at least 0.2
    each, ties to the smaller set. With a single block nothing is held out, and every parent is too rare. Memory: about
    14 bytes per firing of each SAE. Raises ValueError when the tokens of the two SAEs differ.
    """
    blocks = document_blocks(parents.documents)
    spans, held_out = block_spans(blocks), blocks % 2 == 1
    choosing = Counterparts.count(parents, children, CANDIDATES, spans[::2], progress)
    scoring = Counterparts.count(parents, children, MAX_CHILDREN + 1, spans[1::2], progress)
    by_parent, by_child = by_latent(parents), by_latent(children)
    # largest phi first, so the usable candidates come first
    usable = np.count_nonzero(choosing.of_parents.phi >= MIN_PHI, axis=1)
    candidates = [row[:number] for row, number in zip(choosing.of_parents.latents, usable, strict=True)]
    splits, n_parents = [], 0
    latents = np.arange(parents.n_latents)
    some = np.split(latents, latents[PARENTS::PARENTS])
    for these in tracked(progress, some, "finding split latents", parents.n_latents, "latents"):
        chosen_on, scored_on = pattern_counts(by_parent, by_child, held_out, these, candidates)
        enough = (chosen_on.sum(1) >= MIN_FIRINGS) & (scored_on.sum(1) >= MIN_FIRINGS)
        n_parents += int(enough.sum())
        able = enough & (usable[these] >= 2)
        best = _best_sets(these[able], chosen_on[able], choosing)
        splits += _scored(these[able], best, scored_on[able], choosing.of_parents, scoring)
    ranked = sorted(splits, key=lambda split: (split.kept, -split.score, split.parent))
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


def _best_sets(parents: np.ndarray, patterns: np.ndarray, choosing: Counterparts) -> np.ndarray:
    """The best set of each parent, int [p]. patterns: int64 [p, patterns], tokens to choose on."""
    latents = choosing.of_parents.latents[parents]
    phi = at_least_0(choosing.of_parents.phi[parents])
    return set_scores(patterns, phi, choosing.phi_of_children(parents, latents)).argmax(1)


def _scored(
    parents: np.ndarray, best: np.ndarray, patterns: np.ndarray, partners: Partners, counterparts: Counterparts
) -> list[FeatureSplit]:
    """Each parent with the set that was chosen for it, scored by the tokens held out; without those that score 0.

    best: int [p], sets. patterns: int64 [p, patterns], held-out tokens. partners: the candidates of each latent.
    """
    splits = []
    silent, tokens = silent_counts(patterns), patterns.sum(1).tolist()
    for row, (parent, chosen) in enumerate(zip(parents.tolist(), best.tolist(), strict=True)):
        members = list(SETS[chosen])
        of_set = shares_of(silent[row : row + 1], np.array([members]))
        children = tuple(partners.latents[parent, members].tolist())
        lives_on = counterparts.of_parent(parent, children)
        already = tuple(counterparts.of_child(child, parent) for child in children)
        score = of_set.score().item() * (1 - lives_on.phi) * (1 - max(other.phi for other in already))
        if score > 0:
            phi, shares = partners.phi[parent, members], of_set.alone.ravel()
            numbers = of_set.coverage.item(), of_set.overlap.item(), tuple(shares.tolist())
            split = FeatureSplit(parent, children, tuple(phi.tolist()), *numbers, lives_on, already, score, tokens[row])
            splits.append(split)
    return splits
