"""Thresholds per latent from BatchTopK: `per_latent`, which keeps each latent's count, and `eer`, which the paper's
code uses.

`per_latent`: theta_i lies just below the c_i-th largest pre-activation of latent i, where c_i is how often BatchTopK
selects it; so latent i fires c_i times on the calibration tokens, and on new ones at an expected rate of c_i / (T + 1).
Just below means halfway to the next one, but at most BELOW of its size, so that rounding in other code does not change
the count.

`eer`: over the positive pre-activations of latent i let F_sel(theta) be the share of the selected ones up to theta,
which a threshold there misses, and F_unsel(theta) that of the unselected ones, so that 1 - F_unsel is the share that it
lets fire falsely. Where |F_sel + F_unsel - 1| is least both error rates are (nearly) equal. As there are far more
unselected than selected pre-activations, at equal rates more fire falsely than are missed. So the rule fires more than
k, and the more so, the more the two overlap. Source: the code of arXiv 2604.03436, with its 200 bins over [0, 10], its
fallback and its 10.0 for latents never selected. The range is in the SAE's own units.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from metasae.data.split import Split
from metasae.measures.firing.selection import BatchSelection, Screen, candidates, check_finite, model_inputs
from metasae.progress.progress import SILENT, Progress, tracked
from metasae.sae.kernels import fast
from metasae.sae.sae import SAE

# The histogram of `eer`.
BINS, TOP = 200, 10.0
# Below this many selections `eer` takes the fallback; latents without any get DEAD.
FEWEST, DEAD = 100, 10.0
# Rows of a block whose pre-activations are put into bins in one go.
_ROWS = 256
# Numbers kept beyond twice those wanted before the rest is dropped.
_SLACK = 65_536
# The most that `per_latent` goes below the lowest number that is to fire, relative to that number.
BELOW = 2.0**-12
# A pre-activation may come out a little smaller in a second pass, as sums of products are rounded in another order.
_ROUNDING = 0.99


@dataclass(frozen=True)
class Thresholds:
    """values: float32 [n], a latent fires where pre > value.

    selected: int64 [n], how often BatchTopK selects each latent.

    fallbacks: how many latents had too few selections for the rule and took its fallback. fired: int64 [n], how often
    each latent fires at `values`, where the rule counts them anyway.
    """

    values: np.ndarray
    selected: np.ndarray
    fallbacks: int = 0
    fired: np.ndarray | None = None


class LargestOfEach:
    """Keeps every latent's counts[i] + 1 largest numbers of a stream of (latent, number) pairs. O(sum of counts + n)
    memory, exact.

    Invariant for each latent: the numbers above its cut are kept, `_at_cut` numbers equal it, and smaller ones do not
    matter.
    """

    def __init__(self, counts: np.ndarray, cuts: np.ndarray):
        """counts: int64 [n].

        cuts: float32 [n], all below the counts[i]-th largest of its latent; inf where counts[i] is 0.
        """
        self.counts = counts
        self.cuts = cuts.astype(np.float32)
        self._at_cut = np.zeros(len(counts), np.int64)
        self._latents: list[np.ndarray] = []
        self._values: list[np.ndarray] = []

    def add(self, latents: np.ndarray, values: np.ndarray) -> None:
        """The next part of the stream, in which every number at or above its latent's cut must be."""
        cuts = self.cuts[latents]
        self._at_cut += self._count(latents[values == cuts])
        above = values > cuts
        self._latents.append(latents[above])
        self._values.append(values[above])
        if sum(map(len, self._values)) > 2 * (self.counts.sum() + len(self.counts)) + _SLACK:
            self._raise_cuts()

    def thresholds(self) -> np.ndarray:
        """float32 [n], each with as many numbers above it as comes nearest to counts[i]; of two that are equally near,
        the one with fewer firings; inf for 0.
        """
        self._raise_cuts()
        fewer = self._count(self._latents[0])
        sparser = self.counts - fewer <= fewer + self._at_cut - self.counts
        theta = np.where(sparser, self.cuts, np.nextafter(self.cuts, np.float32(0)))
        exact = (fewer == self.counts) & (self.counts > 0)
        # kept numbers lie by latent, the largest first
        lowest, cut = self._values[0][np.cumsum(fewer)[exact] - 1], self.cuts[exact]
        below = np.maximum(lowest * np.float32(1 - BELOW), cut + (lowest - cut) / 2)
        theta[exact] = np.minimum(below, np.nextafter(lowest, np.float32(0)))
        theta[self.counts == 0] = np.inf
        return theta

    def _raise_cuts(self) -> None:
        """Makes the (counts[i] + 1)-th largest number the cut of every latent that has so many above its present
        one."""
        latents = np.concatenate([np.zeros(0, np.int32), *self._latents])
        values = np.concatenate([np.zeros(0, np.float32), *self._values])
        order = np.lexsort((-values, latents))
        latents, values = latents[order], values[order]
        kept = self._count(latents)
        full = (kept > self.counts) & (self.counts > 0)
        places = np.cumsum(kept)[full] - kept[full] + self.counts[full]
        self.cuts[full] = values[places]
        cuts = self.cuts[latents]
        self._at_cut[full] = self._count(latents[values == cuts])[full]
        self._latents, self._values = [latents[values > cuts]], [values[values > cuts]]

    def _count(self, latents: np.ndarray) -> np.ndarray:
        return np.bincount(latents, minlength=len(self.counts))


@torch.no_grad()
def per_latent(sae: SAE, split: Split, k: float, batch: int = 2048, progress: Progress = SILENT) -> Thresholds:
    """Thresholds at which each latent fires as often on `split` as BatchTopK selects it; inf for latents never
    selected.

    Two passes: one selects, one finds the order statistics. Among tied pre-activations the side whose count is nearer
    is taken. O(k T) numbers of memory. Raises UserError when a pre-activation is not finite.
    """
    selection = BatchSelection(sae, k)
    for block in tracked(progress, split.blocks(batch), "setting thresholds, first pass", split.n_tokens):
        selection.add(block)
    largest = LargestOfEach(selection.counts, selection.lowest * np.float32(_ROUNDING))
    screen = Screen(sae, 0.0)
    for block in tracked(progress, split.blocks(batch), "setting thresholds, second pass", split.n_tokens):
        screen.set_limit(torch.from_numpy(largest.cuts))
        largest.add(*candidates(sae, block, screen))
    return Thresholds(largest.thresholds(), selection.counts)


class ErrorRates:
    """Histograms, per latent, of the selected and of the positive but unselected pre-activations of a stream of
    batches.

    selected, unselected: int64 [n, BINS + 1]; bin b holds b TOP / BINS <= pre < (b + 1) TOP / BINS, the last one what
    lies beyond TOP. lowest: smallest selected, inf for none. highest: largest unselected, 0 for none. Both float32 [n].
    """

    def __init__(self, n_latents: int):
        self.selected = np.zeros((n_latents, BINS + 1), np.int64)
        self.unselected = np.zeros((n_latents, BINS + 1), np.int64)
        self.lowest = np.full(n_latents, np.inf, np.float32)
        self.highest = np.zeros(n_latents, np.float32)

    def add(self, pre_BN: np.ndarray, rows: np.ndarray, latents: np.ndarray) -> None:
        """pre: float32 [B, n], overwritten. rows, latents: the entries that are selected."""
        values = pre_BN[rows, latents]
        self._fill(self.selected, latents, values)
        np.minimum.at(self.lowest, latents, values)
        pre_BN[rows, latents] = 0
        self.highest = np.maximum(self.highest, pre_BN.max(axis=0, initial=0))
        for start in range(0, len(pre_BN), _ROWS):
            part = pre_BN[start : start + _ROWS]
            rows, latents = np.nonzero(part > 0)
            self._fill(self.unselected, latents, part[rows, latents])

    def thresholds(self) -> tuple[np.ndarray, int]:
        """(float32 [n], latents that took the fallback). Of bins that are equally good, the lowest counts."""
        counts = self.selected.sum(axis=1)
        gap = np.abs(_shares_up_to(self.selected, of_none=0.0) + _shares_up_to(self.unselected, of_none=1.0) - 1)
        theta = (gap.argmin(axis=1) + 0.5) * (TOP / BINS)
        few = (counts > 0) & (counts < FEWEST)
        theta[few] = np.maximum(self.lowest, self.highest)[few]
        theta[counts == 0] = DEAD
        return theta.astype(np.float32), int(np.count_nonzero(few))

    @staticmethod
    def _fill(histogram: np.ndarray, latents: np.ndarray, values: np.ndarray) -> None:
        # in float64, so that numbers on an edge fall where they belong
        bins = np.minimum(values.astype(np.float64) * (BINS / TOP), BINS).astype(np.int64)
        bins += latents.astype(np.int64) * histogram.shape[1]
        histogram += np.bincount(bins, minlength=histogram.size).reshape(histogram.shape)


@torch.no_grad()
def eer(sae: SAE, split: Split, k: float, batch: int = 2048, progress: Progress = SILENT) -> Thresholds:
    """Thresholds at which a latent's missed share of selected pre-activations equals its false share of unselected
    ones.

    A latent with fewer than FEWEST selections gets the larger of its lowest selected and its highest unselected
    pre-activation; a latent without selections gets DEAD. Memory: 2 n 201 counts, and one dense [batch, n] block.
    Raises UserError when a pre-activation is not finite.
    """
    rates, cut = ErrorRates(sae.n_latents), 0.0
    for block in tracked(progress, split.blocks(batch), "setting thresholds by error rates", split.n_tokens):
        pre: Tensor = sae.pre_activations(model_inputs(sae, block)).detach()
        check_finite(pre)
        kept, cut = fast.select(pre, round(k * len(block)), cut)
        rates.add(pre.cpu().numpy(), kept.rows.cpu().numpy(), kept.latents.cpu().numpy())
    values, fallbacks = rates.thresholds()
    return Thresholds(values, rates.selected.sum(axis=1), fallbacks)


def _shares_up_to(histogram: np.ndarray, of_none: float) -> np.ndarray:
    """The share of each row's numbers in the bins up to and including each: float64 [n, BINS]; `of_none` in empty
    rows."""
    total = histogram.sum(axis=1, keepdims=True)
    shares = np.cumsum(histogram[:, :BINS], axis=1) / np.maximum(total, 1)
    return np.where(total > 0, shares, of_none)
