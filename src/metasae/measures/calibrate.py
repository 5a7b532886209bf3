"""From BatchTopK to a fixed rule: one global threshold at which a token has k active latents on average."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from metasae.errors import UserError
from metasae.measures.firings import fire
from metasae.measures.screen import Screen
from metasae.progress import SILENT, Progress

# Tokens from which a first cut is guessed, and how many more than k of them it lets through.
SAMPLE, SAMPLE_MARGIN = 4096, 1.15


@dataclass(frozen=True)
class Calibration:
    """An SAE's inference rule and what it gives on the calibration split.

    threshold: in the units of the pre-activations; a latent fires where pre > threshold (the mean over latents where they
    differ). l0: realised mean count per token. n_tokens: tokens it was found on. k: the count asked for. rule: `rate`, or `own`
    for thresholds that the SAE came with. reached: False when l0 misses k by more than half a percent: there were fewer than k
    positive pre-activations per token, or many ties, or the thresholds are the SAE's own.
    """

    threshold: float
    l0: float
    n_tokens: int
    k: float
    rule: str = "rate"

    @property
    def reached(self) -> bool:
        return abs(self.l0 - self.k) <= 0.005 * self.k


class Largest:
    """The `count` largest of a stream of numbers above zero, and how many equal the first one left out. O(count) memory, exact.

    Invariant: `_kept` holds every number above `cut`; `_at_cut` numbers equalled it; all others were smaller.
    """

    def __init__(self, count: int, cut: float = 0.0):
        """cut: numbers up to it are never looked at; `reached` says afterwards whether it was low enough."""
        self.count = count
        self.cut = self._first_cut = cut
        self._at_cut = 0
        self._kept: list[np.ndarray] = []
        self._n_kept = 0

    def add(self, values: np.ndarray, equal_to_cut: int) -> None:
        """values: all numbers above `cut` of the next part of the stream. equal_to_cut: how many of that part equal `cut`."""
        if self._at_cut:
            self._at_cut += equal_to_cut
        self._kept.append(values)
        self._n_kept += len(values)
        if self._n_kept > 2 * self.count + 65_536:
            self._raise_cut()

    @property
    def reached(self) -> bool:
        """Whether the first cut has left out nothing that matters."""
        return self.cut > self._first_cut or self._n_kept > self.count or self._first_cut == 0

    def threshold(self) -> tuple[float, int]:
        """(the number nearest to having `count` numbers strictly above it, how many are above it).

        With fewer than `count` positive numbers: (0, all of them).
        """
        if self._n_kept > self.count:
            self._raise_cut()
        with_ties = self._n_kept + self._at_cut
        if self.count - self._n_kept <= with_ties - self.count or not self._at_cut:
            return self.cut, self._n_kept
        below = np.nextafter(np.float32(self.cut), np.float32(0))
        return float(below), with_ties

    def _raise_cut(self) -> None:
        """Makes the (count + 1)-th largest number the cut. Only called with more than `count` numbers kept."""
        values = np.concatenate(self._kept)
        place = len(values) - self.count - 1
        cut = np.partition(values, place)[place]
        self.cut, self._at_cut = float(cut), int(np.count_nonzero(values == cut))
        self._kept = [values[values > cut]]
        self._n_kept = len(self._kept[0])


@torch.no_grad()
def calibrate(sae, split, batch: int = 2048, progress: Progress = SILENT) -> Calibration:
    """Gives an SAE without thresholds the rule `rate` for its k; one with thresholds keeps them, and only its L0 is counted.

    Raises UserError when the split is empty.
    """
    if sae.threshold is None:
        found = calibrate_rate(sae, split, sae.config.k, batch, progress)
        sae.threshold = torch.full([sae.n_latents], found.threshold, device=sae.W_dec.device)
        return found
    firings = fire(sae, split, batch, progress)
    return Calibration(float(sae.threshold.mean()), firings.l0, firings.n_tokens, sae.config.k, "own")


def calibrate_rate(sae, split, k: float, batch: int = 2048, progress: Progress = SILENT) -> Calibration:
    """The global threshold whose realised L0 on `split` is k: the order statistic with k * T pre-activations strictly above it.

    sae in the model's own units. O(k * T) floats of memory. Among tied pre-activations the side whose realised L0 is nearer
    to k is taken; with fewer than k * T positive pre-activations the threshold is 0 (`reached` is then False).
    A cut guessed from a sample spares most of the work and decides nothing: should it prove too high, it is dropped.
    The SAE is left as it was; use `sae.threshold = torch.full([n], threshold)`. Raises UserError when the split is empty or
    a pre-activation is not finite.
    """
    if split.n_tokens < 1:
        raise UserError("no calibration tokens; raise text.calibration_share or give more text")
    _check_finite(sae.W_enc, sae.b_enc, sae.b_dec)
    count = round(k * split.n_tokens)
    guess = _guess(sae, split, k, batch)
    largest = _largest(sae, split, Largest(count, guess), batch, progress)
    if not largest.reached:
        largest = _largest(sae, split, Largest(count), batch, progress)
    threshold, fired = largest.threshold()
    return Calibration(threshold, fired / split.n_tokens, split.n_tokens, k)


def _largest(sae, split, largest: Largest, batch: int, progress: Progress) -> Largest:
    """`largest` after all pre-activations of the split."""
    screen = Screen(sae, largest.cut)
    with progress.task("calibrate", split.n_tokens) as task:
        for block in split.blocks(batch):
            screen.set_limit(largest.cut)
            values = _candidates(sae, block, screen)
            equal = np.count_nonzero(values == np.float32(largest.cut)) if largest.cut else 0
            largest.add(values[values > largest.cut], equal)
            task.advance(len(block))
    return largest


def _guess(sae, split, k: float, batch: int) -> float:
    """A cut that is likely below the threshold, from SAMPLE tokens spread over the split; 0 where a sample would spare nothing."""
    stride = split.n_tokens // SAMPLE
    if stride < 4:
        return 0.0
    sample = torch.cat([block[::stride] for block in split.blocks(batch)])
    values = np.concatenate([_candidates(sae, block, Screen(sae, 0.0, screened=False)) for block in sample.split(batch)])
    place = len(values) - round(SAMPLE_MARGIN * k * len(sample)) - 1
    return max(float(np.partition(values, place)[place]), 0.0) if place >= 0 else 0.0


def _candidates(sae, block: Tensor, screen: Screen) -> np.ndarray:
    x, _, _ = sae.normalise(block.to(sae.W_dec.device, torch.float32))
    values = screen.candidates(x).values
    _check_finite(x, values)
    return values.cpu().numpy()


def _check_finite(*tensors: Tensor) -> None:
    if not all(bool(torch.isfinite(tensor.sum())) for tensor in tensors):
        raise UserError("the SAE gives pre-activations that are not finite; its weights or the activations are damaged")
