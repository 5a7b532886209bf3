"""From BatchTopK to a fixed rule: one global threshold at which a token has k active latents on average."""

from dataclasses import dataclass

import numpy as np
import torch

from metasae.errors import UserError
from metasae.progress import SILENT, Progress


@dataclass(frozen=True)
class Calibration:
    """What the rule `rate` found.

    threshold: in the units of the pre-activations; a latent fires where pre > threshold. l0: realised mean count per token.
    n_tokens: tokens it was found on. k: the count asked for. reached: False when there were fewer than k positive
    pre-activations per token, or so many ties, that l0 misses k by more than half a percent.
    """

    threshold: float
    l0: float
    n_tokens: int
    k: float

    @property
    def reached(self) -> bool:
        return abs(self.l0 - self.k) <= 0.005 * self.k


class Largest:
    """The `count` largest of a stream of numbers above zero, and how many equal the first one left out. O(count) memory, exact.

    Invariant: `_kept` holds every number above `cut`; `_at_cut` numbers equalled it; all others were smaller.
    """

    def __init__(self, count: int):
        self.count = count
        self.cut = 0.0
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
def calibrate_rate(sae, split, k: float, batch: int = 2048, progress: Progress = SILENT) -> Calibration:
    """The global threshold whose realised L0 on `split` is k: the order statistic with k * T pre-activations strictly above it.

    sae in the model's own units. O(k * T) floats of memory. Among tied pre-activations the side whose realised L0 is nearer
    to k is taken; with fewer than k * T positive pre-activations the threshold is 0 (`reached` is then False).
    A cut guessed from a sample spares the look at most entries; should it prove too high, all are looked at.
    The SAE is left as it was; use `sae.threshold = torch.full([n], threshold)`. Raises UserError when the split is empty or
    a pre-activation is not finite.
    """
    if split.n_tokens < 1:
        raise UserError("no calibration tokens; raise text.calibration_share or give more text")
    with progress.task("calibrate", split.n_tokens) as task:
        wanted = round(k * split.n_tokens)
        guess = _guess(sae, split, k, batch)
        largest = _largest(sae, split, wanted, batch, guess, task)
        if guess and largest.found <= wanted:
            largest = _largest(sae, split, wanted, batch, 0.0, None)
    threshold, fired = largest.threshold()
    return Calibration(threshold, fired / split.n_tokens, split.n_tokens, k)


def _largest(sae, split, count: int, batch: int, cut: float, task) -> Largest:
    """The `count` largest pre-activations of the split that lie above `cut`."""
    largest = Largest(count, cut)
    screen = Screen(sae, cut)
    for block in split.blocks(batch):
        if screen.limit != largest.cut:
            screen.set_limit(largest.cut)
        values = _finite(screen.candidates(sae.normalise(block.to(sae.W_dec.device, torch.float32))[0]).values)
        largest.add(values[values > largest.cut], int(np.count_nonzero(values == largest.cut)) if largest.cut else 0)
        if task is not None:
            task.advance(len(block))
    return largest
