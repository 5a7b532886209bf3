"""The input of a penalty (`Scene`), on one process or on several that have some of the latents each.

A penalty's value is over all latents. Its gradients are by the rows [n_r, d] and the entries [K] of this process. A
penalty that is marked with `over_ranks` computes these from its process's part, with the scene's sums over processes.
Any other penalty gets the scene of all latents, on every process (`charge`).
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

from torch import Tensor

from metasae.recipe.registry import PENALTIES, named
from metasae.sae.kernels.kept import Kept
from metasae.sae.spread import WHOLE, Whole


@dataclass(frozen=True)
class Scene:
    """W_dec_ND: decoder rows of unit length. kept: this batch's firings. rate_N: running firing rate per token, fp32
    [n].

    step: primary steps done; seed: the arm's seed. A penalty that draws random numbers seeds them with both, so that a
    resumed run draws the same. spread: how latents lie over processes. W_dec_ND, kept and rate_N are of this process's
    latents, which count from 0 in `kept`. W_meta_MD: all decoder rows of the meta SAE; None without one.
    """

    W_dec_ND: Tensor
    kept: Kept
    rate_N: Tensor
    step: int
    seed: int
    spread: Whole = WHOLE
    W_meta_MD: Tensor | None = None
    _rows: list[Tensor] = field(default_factory=list, repr=False)

    @property
    def own(self) -> range:
        """Which of all latents are on this process."""
        return self.spread.latents(len(self.W_dec_ND))

    @property
    def n_latents(self) -> int:
        """How many latents there are in all."""
        return self.spread.n_latents(len(self.W_dec_ND))

    @property
    def rows_ND(self) -> Tensor:
        """The decoder rows of all latents [n, d]. They are sent between processes once, on the first call."""
        if not self._rows:
            self._rows.append(self.all_latents(self.W_dec_ND))
        return self._rows[0]

    def over_latents(self, part: Tensor) -> Tensor:
        """The sum over all latents, given the sum over this process's: [c] (added in float64) or [a, b]. `part` may be
        overwritten.
        """
        return self.spread.over_latents(part)

    def all_latents(self, part: Tensor) -> Tensor:
        """[r, ...] of this process, any number of rows -> those of all processes, in the order of latents."""
        return self.spread.all_latents(part)

    def whole(self) -> "Scene":
        """The scene of all latents, on every process."""
        kept, n = self.kept, self.n_latents
        flat = self.all_latents(kept.rows.long() * n + kept.latents + self.own.start)
        values, order = self.all_latents(kept.values), flat.argsort()
        return Scene(
            self.rows_ND,
            Kept.from_flat(flat[order], values[order], kept.n_rows, n),
            self.all_latents(self.rate_N),
            self.step,
            self.seed,
            W_meta_MD=self.W_meta_MD,
        )


class Charge(NamedTuple):
    """What a penalty returns; `entries_K` may be left out.

    value: 0-dim. rows_ND: its gradient by the decoder rows. entries_K: its gradient by the activations, one number for
    each entry of `scene.kept`; None where the value does not depend on them. The trainer backpropagates it into the
    encoder together with the gradient of the reconstruction.
    """

    value: Tensor
    rows_ND: Tensor
    entries_K: Tensor | None = None


@dataclass(frozen=True)
class Charges:
    """Several penalties of a step. values: by name; cost: their sum, each with its coefficient; rows_ND, entries_K: the
    gradient by the decoder rows and by the kept entries (None where no penalty has one).
    """

    values: dict[str, Tensor]
    cost: Tensor
    rows_ND: Tensor
    entries_K: Tensor | None


Penalty = Callable[[Scene], Charge | tuple[Tensor, Tensor]]


def over_ranks(penalty: Penalty) -> Penalty:
    """Marks a penalty that, of a scene with some of the latents, returns the value over all latents and the gradients
    by the rows and entries of the scene.
    """
    penalty.over_ranks = True
    return penalty


def multiplies(rows: Callable[[int], int]) -> Callable[[Penalty], Penalty]:
    """Marks a penalty that multiplies each row with `rows(n)` of all n rows, for `metasae doctor --gpus` to count."""

    def mark(penalty: Penalty) -> Penalty:
        penalty.rows_multiplied = rows
        return penalty

    return mark


def rows_multiplied(penalty: Penalty, n: int) -> int:
    """With how many of n rows a penalty multiplies each row; 0 for a penalty that is not marked with `multiplies`."""
    return penalty.rows_multiplied(n) if hasattr(penalty, "rows_multiplied") else 0


def charge(penalty: Penalty, scene: Scene) -> Charge:
    """The value over all latents, and the gradients by the rows and entries of this process."""
    if scene.spread is WHOLE or getattr(penalty, "over_ranks", False):
        return Charge(*penalty(scene))
    whole, own = scene.whole(), scene.own
    value, rows, entries = Charge(*penalty(whole))
    if entries is not None:
        entries = entries[whole.kept.between(own.start, own.stop)[1]]
    return Charge(value, rows[own.start : own.stop], entries)


def charge_all(coefficients: dict[str, float], scene: Scene, fold: int) -> Charges:
    """The penalties of these names, each with its coefficient; the gradients are multiplied by `fold`.

    Raises UserError for a name that this process does not know.
    """
    values, rows_ND, entries_K = {}, None, None
    for name, coef in coefficients.items():
        charged = charge(named(PENALTIES, name), scene)
        values[name] = charged.value
        rows_ND = _added(rows_ND, charged.rows_ND, coef * fold)
        if charged.entries_K is not None:
            entries_K = _added(entries_K, charged.entries_K, coef * fold)
    cost = sum(coefficients[name] * value for name, value in values.items())
    return Charges(values, cost, rows_ND, entries_K)


def _added(total: Tensor | None, part: Tensor, factor: float) -> Tensor:
    """total + factor * part, in the memory of `total` where there is one."""
    return part * factor if total is None else total.add_(part, alpha=factor)
