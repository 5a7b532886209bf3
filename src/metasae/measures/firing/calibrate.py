"""From BatchTopK to a fixed rule of inference: a latent fires where its pre-activation lies above a threshold.

`rate`: one global threshold at which a token has k active latents on average. `relative`: the same L0, but a latent's
threshold lies above a common one by a fifth of its own mean activation. `per_latent` and `eer`: one for each latent,
see `rules.py`. Under every rule the firings are counted afterwards and compared with BatchTopK's own, latent by latent.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace

import numpy as np
import torch
from torch import Tensor

from metasae.data.split import Split, own_part
from metasae.errors import UserError, nearest
from metasae.measures.firing.rules import Thresholds, eer, per_latent
from metasae.measures.firing.selection import BatchSelection, Screen, candidates, check_finite, count_firings
from metasae.progress.progress import SILENT, Progress, tracked
from metasae.ranks.ranks import ALONE, Ranks
from metasae.sae.sae import SAE

# How far `relative` puts a latent's threshold above the common one, as a share of its mean activation.
RELATIVE = 0.2
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
# Numbers kept beyond twice those wanted before the rest is dropped.
_SLACK = 65_536


@dataclass(frozen=True)
class Calibration:
    """An SAE's inference rule and its results on the calibration split.

    Plain JSON as `asdict`, and back as `Calibration(**json)`.

    threshold: in the units of the pre-activations; a latent fires where pre > threshold. The mean over the latents
    whose threshold is finite, None where none is. l0: realised mean count per token. n_tokens: tokens it was found on.
    k: the count asked for. rule: that of `calibrate`, or `own` for thresholds that the SAE came with.

    Against BatchTopK with k on the same tokens (None for `own`, whose SAE need not be a BatchTopK one):
    rate_error, rate_error_abs: mean over latents of (firings - selections) / selections, and of its size.
    rate_error_quantiles: "0.05" ... "0.95" -> quantile of it. never_selected: latents that BatchTopK never selects,
    which have no such error.
    fire_unselected: how many of those fire all the same. fallbacks: latents that took the rule's fallback; only `eer`
    has one.
    """

    threshold: float | None
    l0: float
    n_tokens: int
    k: float
    rule: str = "rate"
    rate_error: float | None = None
    rate_error_abs: float | None = None
    rate_error_quantiles: dict[str, float] | None = None
    never_selected: int | None = None
    fire_unselected: int | None = None
    fallbacks: int | None = None

    @property
    def reached(self) -> bool:
        """False when l0 misses k by more than half a percent: there were fewer than k positive pre-activations per
        token, or many ties, or the rule does not aim at k (`eer`, `own`)."""
        return abs(self.l0 - self.k) <= 0.005 * self.k

    def as_dict(self) -> dict:
        """The `calibration` part of measures.json."""
        return asdict(self) | {"reached": self.reached}


class Largest:
    """The `count` largest of a stream of positive numbers, each of some latent, and all that equal the next largest.

    O(count) memory beside ties, exact: every number from `cut` on is kept, and smaller ones do not matter.
    """

    def __init__(self, count: int, cut: float = 0.0):
        """cut: a guess; smaller numbers are never looked at, and `reached` says afterwards whether it was low
        enough."""
        self.count, self.cut, self._guess = count, cut, cut
        self._latents: list[np.ndarray] = [np.zeros(0, np.int32)]
        self._values: list[np.ndarray] = [np.zeros(0, np.float32)]
        self._n_kept, self._most = 0, 2 * count + _SLACK

    def add(self, latents: np.ndarray, values: np.ndarray) -> None:
        """values [m], and the latents they belong to: all numbers from `cut` on of the next part of the stream."""
        kept = values >= np.float32(self.cut) if self.cut else values > 0
        self._latents.append(latents[kept])
        self._values.append(values[kept])
        self._n_kept += len(self._values[-1])
        if self._n_kept > self._most:
            self._raise_cut()

    @property
    def reached(self) -> bool:
        """Whether the guess was low enough, so that no number that matters was left out."""
        return self._guess == 0 or self._n_kept > self.count

    def all_above(self) -> tuple[float, np.ndarray]:
        """(a number above which all numbers are known, those numbers)."""
        below = float(np.nextafter(np.float32(self.cut), np.float32(0))) if self.cut else 0.0
        return below, np.concatenate(self._values)

    def threshold(self) -> float:
        """The number nearest to having `count` numbers strictly above it; 0 with fewer than `count` positive
        numbers."""
        if self._n_kept <= self.count:
            return 0.0
        self._raise_cut()
        above = np.count_nonzero(self._values[0] > np.float32(self.cut))
        return _nearer(self.cut, self.count - above, self._n_kept - self.count)

    def above(self, threshold: float, n_latents: int) -> np.ndarray:
        """How many numbers of each latent lie above a threshold that is no lower than `threshold()`, int64 [n]."""
        counts = np.zeros(n_latents, np.int64)
        for latents, values in zip(self._latents, self._values, strict=True):
            counts += np.bincount(latents[values > np.float32(threshold)], minlength=n_latents)
        return counts

    def _raise_cut(self) -> None:
        """Makes the (count + 1)-th largest number the cut. Only called with more than `count` numbers kept."""
        latents, values = np.concatenate(self._latents), np.concatenate(self._values)
        place = len(values) - self.count - 1
        cut = np.partition(values, place)[place]
        kept = values >= cut
        self.cut, self._latents, self._values = float(cut), [latents[kept]], [values[kept]]
        self._n_kept = len(self._values[0])
        self._most = 2 * self._n_kept + _SLACK


def _nearer(cut: float, too_few: int, too_many: int) -> float:
    """The cut, or the number just below it, which lets its ties through too: whichever comes nearer to the count."""
    return cut if too_few <= too_many else float(np.nextafter(np.float32(cut), np.float32(0)))


@torch.no_grad()
def calibrate(
    sae: SAE,
    split: Split,
    batch: int = 2048,
    progress: Progress = SILENT,
    rule: str = "rate",
    ranks: Ranks = ALONE,
) -> Calibration:
    """Gives an SAE without thresholds those of a rule, for its k; one with thresholds keeps them, and only its firings
    are counted.

    split: tokens that are neither in training nor in evaluation. batch: tokens per BatchTopK selection, so best that of
    training. rule: `rate`, `relative`, `per_latent` or `eer`. Set `sae.threshold = None` to calibrate an SAE anew. O(k
    T + 200 n) numbers of memory. ranks: share the tokens, each with the same SAE, and find the same; the thresholds of
    `per_latent` and `eer`, which take every latent's own numbers together, are found by the first of them. Raises
    UserError when the split is empty, the rule unknown or a pre-activation not finite.
    """
    if rule not in RULES:
        raise UserError(f"unknown threshold rule '{rule}'{nearest(rule, RULES)}")
    if split.n_tokens < 1:
        raise UserError("no calibration tokens; raise text.calibration_share or give more text")
    check_finite(sae.W_enc, sae.b_enc, sae.b_dec)
    k = sae.config.k
    if sae.threshold is not None:
        fired = count_firings(sae, sae.threshold, split, batch, progress, ranks)
        mean = _mean(sae.threshold.cpu().numpy())
        return Calibration(mean, int(fired.sum()) / split.n_tokens, split.n_tokens, k, "own")
    if rule == "relative":
        sae.offset = _relative_offset(sae, split, k, batch, progress, ranks)
    with _without_offset(sae) as offset:
        if RULES[rule] is rate:
            thresholds = rate(sae, split, k, batch, progress, ranks)
        else:
            own = RULES[rule](sae, split, k, batch, progress) if ranks.first else None
            thresholds = ranks.from_first(own)
    thresholds = replace(thresholds, values=thresholds.values + offset)
    threshold = torch.from_numpy(thresholds.values).to(sae.W_dec.device)
    counted = thresholds.fired is not None
    fired = thresholds.fired if counted else count_firings(sae, threshold, split, batch, progress, ranks)
    sae.threshold = threshold
    return _calibration(thresholds, fired, split.n_tokens, k, rule)


@torch.no_grad()
def rate(
    sae: SAE, split: Split, k: float, batch: int = 2048, progress: Progress = SILENT, ranks: Ranks = ALONE
) -> Thresholds:
    """The global threshold whose realised L0 on `split` is k: the order statistic with k * T pre-activations strictly
    above it.

    Among tied pre-activations the side whose realised L0 is nearer to k is taken; with fewer than k * T positive
    pre-activations the threshold is 0. A cut guessed from the first block's selection saves most of the work and does
    not change the result: if it proves too high, it is dropped and the split is read again. O(k * T) numbers of memory.
    ranks: as in `calibrate`. Where the screen is in use, a pre-activation may differ in its last bit with the cut that
    it was found by, and so may the threshold with the ranks.
    """
    own, count = own_part(split, batch, ranks), round(k * split.n_tokens)
    selection, largest = BatchSelection(sae, k), None
    for block in tracked(progress, own.blocks(batch), "setting thresholds", own.n_tokens):
        latents, values = selection.add(block, 0.0 if largest is None else largest.cut)
        largest = Largest(count, selection.cut) if largest is None else largest
        largest.add(latents, values)
    largest = largest or Largest(count)
    threshold = _threshold(largest, ranks)
    if threshold is None:
        largest = _without_guess(sae, own, count, batch, progress)
        threshold = _threshold(largest, ranks)
    selected = ranks.sum_(torch.from_numpy(selection.counts)).numpy()
    fired = ranks.sum_(torch.from_numpy(largest.above(threshold, sae.n_latents))).numpy()
    return Thresholds(np.full(sae.n_latents, threshold, np.float32), selected, fired=fired)


RULES: dict[str, Callable[..., Thresholds]] = {"rate": rate, "relative": rate, "per_latent": per_latent, "eer": eer}


def _relative_offset(sae: SAE, split: Split, k: float, batch: int, progress: Progress, ranks: Ranks) -> Tensor:
    """RELATIVE times each latent's mean pre-activation where BatchTopK selects it, [n]; for latents that it never
    selects, the mean over all selected ones. It takes the place of a margin from training.
    """
    sae.offset, own, selection = None, own_part(split, batch, ranks), BatchSelection(sae, k)
    for block in tracked(progress, own.blocks(batch), "mean activations", own.n_tokens):
        selection.add(block)
    counts, totals = (ranks.sum_(torch.from_numpy(part).double()) for part in (selection.counts, selection.totals))
    means = torch.where(counts > 0, totals / counts.clamp(min=1), totals.sum() / counts.sum().clamp(min=1))
    return RELATIVE * means.float()


@contextmanager
def _without_offset(sae: SAE) -> Iterator[np.ndarray]:
    """The SAE with its pre-activations lowered by the given offsets, as a margin in training does for the selection."""
    if sae.offset is None:
        yield np.zeros(sae.n_latents, np.float32)
        return
    b_enc, offset = sae.b_enc.detach().clone(), sae.offset
    sae.b_enc.copy_(b_enc - offset.to(b_enc))
    yield offset.cpu().numpy()
    sae.b_enc.copy_(b_enc)
    sae.offset = None


def _threshold(largest: Largest, ranks: Ranks) -> float | None:
    """`Largest.threshold` of the numbers of all ranks; None where a guess has left out some that matter."""
    if ranks.size == 1:
        return largest.threshold() if largest.reached else None
    from metasae.train.sharded.threshold import bits_of, global_threshold

    known_above, values = largest.all_above()
    # a rank that has raised its cut has left out nothing that matters; the others know no numbers below their guesses
    cut = max(ranks.numbers(known_above))
    keys = bits_of(torch.from_numpy(values[values > np.float32(cut)]))
    limit = global_threshold(keys, cut, largest.count + 1, ranks, torch.float32)
    if limit is None:
        return None if cut else 0.0
    bits, spare, ties = limit
    above = largest.count + 1 - spare
    too_many = above + ties - largest.count
    return _nearer(float(np.int32(bits).view(np.float32)), largest.count - above, too_many)


def _without_guess(sae: SAE, split: Split, count: int, batch: int, progress: Progress) -> Largest:
    """The `count` largest of all pre-activations of the split."""
    largest, screen = Largest(count), Screen(sae, 0.0)
    for block in tracked(progress, split.blocks(batch), "setting thresholds, second pass", split.n_tokens):
        screen.set_limit(largest.cut)
        largest.add(*candidates(sae, block, screen))
    return largest


def _calibration(thresholds: Thresholds, fired: np.ndarray, n_tokens: int, k: float, rule: str) -> Calibration:
    """The calibration, with the comparison to BatchTopK. fired: int64 [n], how often each latent fires at the
    thresholds found.
    """
    selected = thresholds.selected
    live = selected > 0
    errors = (fired[live] - selected[live]) / selected[live]
    return Calibration(
        threshold=_mean(thresholds.values),
        l0=int(fired.sum()) / n_tokens,
        n_tokens=n_tokens,
        k=k,
        rule=rule,
        rate_error=float(errors.mean()) if len(errors) else None,
        rate_error_abs=float(np.abs(errors).mean()) if len(errors) else None,
        rate_error_quantiles={f"{q:g}": float(np.quantile(errors, q)) for q in QUANTILES} if len(errors) else None,
        never_selected=int(np.count_nonzero(~live)),
        fire_unselected=int(np.count_nonzero(fired[~live])),
        fallbacks=thresholds.fallbacks if rule == "eer" else None,
    )


def _mean(thresholds: np.ndarray) -> float | None:
    """The mean of the finite ones; a common threshold as it is, without rounding."""
    finite = thresholds[np.isfinite(thresholds)].astype(np.float64)
    if not len(finite):
        return None
    return float(finite[0]) if (finite == finite[0]).all() else float(finite.mean())
