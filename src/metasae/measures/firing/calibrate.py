"""From BatchTopK to a fixed rule of inference: a latent fires where its pre-activation lies above a threshold.

`rate`: one global threshold at which a token has k active latents on average. `per_latent` and `eer`: one for each latent, see
`rules.py`. Whatever the rule, its firings are counted afterwards and held against BatchTopK's own, latent by latent.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass

import numpy as np
import torch

from metasae.data.split import own_part
from metasae.errors import UserError, nearest
from metasae.measures.firing.rules import Thresholds, eer, per_latent
from metasae.measures.firing.screen import Screen
from metasae.measures.firing.selection import BatchSelection, candidates, check_finite, firing_counts
from metasae.progress.progress import SILENT, Progress
from metasae.ranks.ranks import ALONE, Ranks

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


@dataclass(frozen=True)
class Calibration:
    """An SAE's inference rule and what it gives on the calibration split. Plain JSON as `asdict`, and back as `Calibration(**json)`.

    threshold: in the units of the pre-activations; a latent fires where pre > threshold. The mean over the latents whose
    threshold is finite, None where none is. l0: realised mean count per token. n_tokens: tokens it was found on. k: the count
    asked for. rule: `rate`, `per_latent`, `eer`, or `own` for thresholds that the SAE came with.

    Against BatchTopK with k on the same tokens (None for `own`, whose SAE need not be a BatchTopK one):
    rate_error, rate_error_abs: mean over latents of (firings - selections) / selections, and of its size. rate_error_quantiles:
    "0.05" ... "0.95" -> quantile of it. never_selected: latents that BatchTopK never selects, which have no such error.
    fire_unselected: how many of those fire all the same. fallbacks: latents that took the rule's fallback; only `eer` has one.
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
        """False when l0 misses k by more than half a percent: there were fewer than k positive pre-activations per token, or many
        ties, or the rule does not aim at k (`eer`, `own`)."""
        return abs(self.l0 - self.k) <= 0.005 * self.k

    def as_dict(self) -> dict:
        """The `calibration` part of measures.json."""
        return asdict(self) | {"reached": self.reached}


class Largest:
    """The `count` largest of a stream of numbers above zero, each of some latent, and how many equal the first one left out.

    O(count) memory, exact. Invariant: `_kept` holds every number above `cut`; `_at_cut` numbers equalled it; all others were smaller.
    """

    def __init__(self, count: int, cut: float = 0.0):
        """cut: numbers up to it are never looked at; `reached` says afterwards whether it was low enough."""
        self.count = count
        self.cut = self._first_cut = cut
        self._at_cut = 0
        self._latents: list[np.ndarray] = []
        self._kept: list[np.ndarray] = []
        self._n_kept = 0

    def add(self, latents: np.ndarray, values: np.ndarray, equal_to_cut: int) -> None:
        """values, and the latents they belong to: all numbers above `cut` of the next part of the stream. equal_to_cut: how many of
        that part equal `cut`."""
        if self._at_cut:
            self._at_cut += equal_to_cut
        self._latents.append(latents)
        self._kept.append(values)
        self._n_kept += len(values)
        if self._n_kept > 2 * self.count + 65_536:
            self._raise_cut()

    @property
    def reached(self) -> bool:
        """Whether the first cut has left out nothing that matters."""
        return self.cut > self._first_cut or self._n_kept > self.count or self._first_cut == 0

    def all_above(self) -> tuple[float, np.ndarray]:
        """(a number above which all are known, those above it). Ties beyond what the answer needs are left out."""
        kept = np.concatenate([np.zeros(0, np.float32), *self._kept])
        if self.cut == self._first_cut:
            return self.cut, kept
        ties = np.full(min(self._at_cut, 2 * self.count + 2), self.cut, np.float32)
        return float(np.nextafter(np.float32(self.cut), np.float32(0))), np.concatenate([kept, ties])

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

    def above(self, threshold: float, n_latents: int) -> np.ndarray | None:
        """How many numbers of each latent lie above the threshold, int64 [n]; None where not all of these are known."""
        if threshold < self.cut:
            return None
        counts = np.zeros(n_latents, np.int64)
        for latents, values in zip(self._latents, self._kept, strict=True):
            counts += np.bincount(latents[values > np.float32(threshold)], minlength=n_latents)
        return counts

    def _raise_cut(self) -> None:
        """Makes the (count + 1)-th largest number the cut. Only called with more than `count` numbers kept."""
        latents, values = np.concatenate(self._latents), np.concatenate(self._kept)
        place = len(values) - self.count - 1
        cut = np.partition(values, place)[place]
        self.cut, self._at_cut = float(cut), int(np.count_nonzero(values == cut))
        self._latents, self._kept = [latents[values > cut]], [values[values > cut]]
        self._n_kept = len(self._kept[0])


@torch.no_grad()
def calibrate(
    sae, split, batch: int = 2048, progress: Progress = SILENT, rule: str = "rate", ranks: Ranks = ALONE
) -> Calibration:
    """Gives an SAE without thresholds those of a rule, for its k; one with thresholds keeps them, and only its firings are counted.

    split: tokens apart from training and evaluation. batch: tokens per BatchTopK selection, so best that of training. rule:
    `rate`, `per_latent` or `eer`. Set `sae.threshold = None` to calibrate an SAE anew. O(k T + 200 n) numbers of memory.
    ranks: share the tokens, each with the same SAE, and find the same; the thresholds of `per_latent` and `eer`, which take every
    latent's own numbers together, are found by the first of them.
    Raises UserError when the split is empty, the rule unknown or a pre-activation not finite.
    """
    if rule not in RULES:
        raise UserError(f"unknown threshold rule '{rule}'{nearest(rule, RULES)}")
    _check(sae, split)
    k = sae.config.k
    if sae.threshold is not None:
        fired = _fired(sae, sae.threshold, split, batch, progress, ranks)
        return Calibration(
            _mean(sae.threshold.cpu().numpy()), int(fired.sum()) / split.n_tokens, split.n_tokens, k, "own"
        )
    if rule == "rate":
        found = rate(sae, split, k, batch, progress, ranks)
    else:
        found = ranks.from_first(RULES[rule](sae, split, k, batch, progress) if ranks.first else None)
    threshold = torch.from_numpy(found.values).to(sae.W_dec.device)
    fired = _fired(sae, threshold, split, batch, progress, ranks) if found.fired is None else found.fired
    sae.threshold = threshold
    return _calibration(found, fired, split.n_tokens, k, rule)


def calibrate_rate(sae, split, k: float, batch: int = 2048, progress: Progress = SILENT) -> Calibration:
    """What `calibrate` finds by the rule `rate` for any k; the SAE is left as it was.

    Use `sae.threshold = torch.full([n], threshold)`. Raises UserError as `calibrate` does.
    """
    _check(sae, split)
    found = rate(sae, split, k, batch, progress)
    fired = (
        firing_counts(sae, torch.from_numpy(found.values), split, batch, progress)
        if found.fired is None
        else found.fired
    )
    return _calibration(found, fired, split.n_tokens, k, "rate")


@torch.no_grad()
def rate(sae, split, k: float, batch: int = 2048, progress: Progress = SILENT, ranks: Ranks = ALONE) -> Thresholds:
    """The global threshold whose realised L0 on `split` is k: the order statistic with k * T pre-activations strictly above it.

    Among tied pre-activations the side whose realised L0 is nearer to k is taken; with fewer than k * T positive pre-activations
    the threshold is 0. A cut guessed from the first block's selection spares most of the work and decides nothing: should it
    prove too high, it is dropped and the split gone through again. O(k * T) numbers of memory. ranks: as in `calibrate`. Where the screen
    is in use, a pre-activation may differ in its last bit with the cut that it was found by, and so may the threshold with the ranks.
    `fired` is left open where the threshold lies below ties that were only counted.
    """
    own, count = own_part(split, batch, ranks), round(k * split.n_tokens)
    selection, largest = BatchSelection(sae, k), None
    with progress.task("setting thresholds", own.n_tokens) as task:
        for block in own.blocks(batch):
            latents, values = selection.add(block, 0.0 if largest is None else largest.cut)
            largest = Largest(count, selection.cut) if largest is None else largest
            _add(largest, latents, values)
            task.advance(len(block))
    largest = largest or Largest(count)
    threshold = _threshold(largest, ranks)
    if threshold is None:
        largest = _without_guess(sae, own, count, batch, progress)
        threshold = _threshold(largest, ranks)
    selected = ranks.sum_(torch.from_numpy(selection.counts)).numpy()
    fired = largest.above(threshold, sae.n_latents)
    known = not ranks.any(fired is None)
    fired = ranks.sum_(torch.from_numpy(fired)).numpy() if known else None
    return Thresholds(np.full(sae.n_latents, threshold, np.float32), selected, fired=fired)


RULES: dict[str, Callable[..., Thresholds]] = {"rate": rate, "per_latent": per_latent, "eer": eer}


def _threshold(largest: Largest, ranks: Ranks) -> float | None:
    """`Largest.threshold` of the numbers of all ranks; None where a guess has left out some that matter."""
    if ranks.size == 1:
        return largest.threshold()[0] if largest.reached else None
    from metasae.train.sharded.threshold import bits_of, global_threshold

    known_above, values = largest.all_above()
    # whoever has raised its cut has left out nothing that matters; the others know no numbers up to their guesses
    cut = max(ranks.numbers(known_above))
    keys = bits_of(torch.from_numpy(values[values > np.float32(cut)]))
    found = global_threshold(keys, cut, largest.count + 1, ranks, torch.float32)
    if found is None:
        return None if cut else 0.0
    limit = np.int32(found.bits).view(np.float32)
    # as near to `count` as ties allow
    fewer, equal = largest.count + 1 - found.spare, found.ties
    return float(
        limit if largest.count - fewer <= fewer + equal - largest.count else np.nextafter(limit, np.float32(0))
    )


def _fired(sae, threshold: torch.Tensor, split, batch: int, progress: Progress, ranks: Ranks) -> np.ndarray:
    """`firing_counts` over all ranks."""
    own = firing_counts(sae, threshold, own_part(split, batch, ranks), batch, progress)
    return ranks.sum_(torch.from_numpy(own)).numpy()


def _without_guess(sae, split, count: int, batch: int, progress: Progress) -> Largest:
    """The `count` largest of all pre-activations of the split."""
    largest, screen = Largest(count), Screen(sae, 0.0)
    with progress.task("setting thresholds, second pass", split.n_tokens) as task:
        for block in split.blocks(batch):
            screen.set_limit(largest.cut)
            _add(largest, *candidates(sae, block, screen))
            task.advance(len(block))
    return largest


def _add(largest: Largest, latents: np.ndarray, values: np.ndarray) -> None:
    equal = np.count_nonzero(values == np.float32(largest.cut)) if largest.cut else 0
    above = values > largest.cut
    largest.add(latents[above], values[above], equal)


def _calibration(found: Thresholds, fired: np.ndarray, n_tokens: int, k: float, rule: str) -> Calibration:
    """fired: int64 [n], how often each latent fires at the thresholds found."""
    live = found.selected > 0
    errors = (fired[live] - found.selected[live]) / found.selected[live]
    return Calibration(
        threshold=_mean(found.values),
        l0=int(fired.sum()) / n_tokens,
        n_tokens=n_tokens,
        k=k,
        rule=rule,
        rate_error=float(errors.mean()) if len(errors) else None,
        rate_error_abs=float(np.abs(errors).mean()) if len(errors) else None,
        rate_error_quantiles={f"{q:g}": float(np.quantile(errors, q)) for q in QUANTILES} if len(errors) else None,
        never_selected=int(np.count_nonzero(~live)),
        fire_unselected=int(np.count_nonzero(fired[~live])),
        fallbacks=found.fallbacks if rule == "eer" else None,
    )


def _check(sae, split) -> None:
    if split.n_tokens < 1:
        raise UserError("no calibration tokens; raise text.calibration_share or give more text")
    check_finite(sae.W_enc, sae.b_enc, sae.b_dec)


def _mean(thresholds: np.ndarray) -> float | None:
    """The mean of the finite ones; a common threshold as it is, without rounding."""
    finite = thresholds[np.isfinite(thresholds)].astype(np.float64)
    if not len(finite):
        return None
    return float(finite[0]) if (finite == finite[0]).all() else float(finite.mean())
