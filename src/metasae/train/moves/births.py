"""Births: a latent whose residual takes two values is split in two (`train.births`).

For every kept entry (token, latent i, value z), with r = x - xh and v_i a unit vector at a right angle to w_i:

    p   = v_i . r                            the residual along v_i
    rho = p / z                              the same in units of the activation
    v_i <- unit(v_i + .1 unit(sum p y))      y = r - (w_i . r) w_i: v_i turns to where y varies most (Oja's rule)

Over a window of steps: count, mean m, variance V, skew g and kurtosis q of rho, and E = sum of z^2 per token.

    two_points_i = (g^2 + 1) / q        1 where rho takes two values, as for two senses that exclude each other
    gain_i = E_i V_i                    squared error along v_i per token, which two latents in its place would not have
    use_j  = E_j                        squared activation of latent j per token
    loss_j = use_j left_j               left_j: the share of row j that four other rows cannot rebuild (spare.py)

Of the latents that pass `train.births.two_points` and `firings`, those of largest gain are split. The second half of
each takes the place of the latent j of least loss that is left, if gain_i > loss_j. Two values with the moments of rho
are

    share+ = (1 - g / sqrt(4 + g^2)) / 2,    rho+- = m +- sqrt(V) sqrt(share-+ / share+-)

The decoder rows of places i and j become unit(w_i + rho+- v_i); newborn.py has their encoder rows. A birth promises to
save gain_i. After the next window, saved = promised - gain_i - gain_j. No more births are made once those of a window
have saved less than the share LEAST_KEPT of what they promised.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from metasae.recipe.tables import Births as Spec
from metasae.sae.gradients import Reconstruction
from metasae.sae.spread import Whole
from metasae.train.learner import Learner
from metasae.train.moves.newborn import Twins, twins
from metasae.train.moves.spare import left_over

# Every so many steps of a window are looked at: a look costs about a fourth of a step, and half as many tell as much.
EVERY = 2
# Length of the vector that turns a unit axis v in a step.
TURN = 0.1
# Share of the promised error that the births of a window must save for births to go on.
LEAST_KEPT = 0.0


@dataclass(frozen=True)
class Evidence:
    """The statistics of every latent over a window, float64 [n] each; see the equations above. two_points is 0 for a
    latent with fewer than two firings, or whose rho does not vary.
    """

    count: np.ndarray
    mean: np.ndarray
    variance: np.ndarray
    skew: np.ndarray
    two_points: np.ndarray
    use: np.ndarray

    @property
    def gain(self) -> np.ndarray:
        return self.use * self.variance


def evidence(moments_N6: np.ndarray, tokens: int) -> Evidence:
    """moments [n, 6]: per latent the count, the sums of rho to rho^4, and the sum of z^2, over so many tokens."""
    count = moments_N6[:, 0]
    some = np.maximum(count, 1)
    m1, m2, m3, m4 = (moments_N6[:, power] / some for power in range(1, 5))
    variance = np.maximum(m2 - m1**2, 0)
    third = m3 - 3 * m1 * m2 + 2 * m1**3
    fourth = m4 - 4 * m1 * m3 + 6 * m1**2 * m2 - 3 * m1**4
    # where rho hardly varies, the differences above are rounding errors
    spread = variance > 1e-9 * np.maximum(m2, 1e-30)
    safe = np.where(spread, variance, 1.0)
    skew = np.where(spread, third / safe**1.5, 0.0)
    kurtosis = np.where(spread, np.maximum(fourth / safe**2, 1.0), np.inf)
    two_points = np.where(count >= 2, (skew**2 + 1) / kurtosis, 0.0)
    return Evidence(count, m1, variance, skew, two_points, moments_N6[:, 5] / max(tokens, 1))


def chosen(stats: Evidence, loss_N: np.ndarray, spec: Spec, most: int) -> list[tuple[int, int]]:
    """(parent, child) of each birth, largest gain first: the latent to split, and the one whose place the second half
    takes. Ties go to the lower latent. loss: float64 [n], as above. most: births at most.
    """
    upper = two_values(stats.mean, stats.variance, stats.skew)[0]
    may = (stats.two_points >= spec.two_points) & (stats.count * np.minimum(upper, 1 - upper) >= spec.firings)
    parents = [int(i) for i in np.argsort(-stats.gain, kind="stable") if may[i] and stats.gain[i] > 0][:most]
    taken, pairs = set(parents), []
    poorest = iter(np.argsort(loss_N, kind="stable"))
    for parent in parents:
        child = next((int(j) for j in poorest if int(j) not in taken), None)
        if child is None or loss_N[child] >= stats.gain[parent]:
            break
        pairs.append((parent, child))
    return pairs


def two_values(mean, variance, skew) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(share of the upper value, upper value, lower value) of the two-point distribution with these moments."""
    upper = (1 - skew / np.sqrt(4 + skew**2)) / 2
    sd, ratio = np.sqrt(variance), np.sqrt((1 - upper) / upper)
    return upper, mean + sd * ratio, mean - sd / ratio


class Births:
    """An arm's births: the statistics, the steps at which they are used, and the records of all births.

    axes_ND: v. moments_N6: see `evidence`. records: every birth, a dictionary each, as births.json has them.
    stopped_at: after which step no more are made, as those before had saved nothing; None while they go on.
    """

    def __init__(self, spec: Spec, learner: Learner, total: int, seed: int, spread: Whole):
        self.spec, self.learner, self.spread = spec, learner, spread
        W = learner.weights.W_dec_ND
        self.n, self.own = spread.n_latents(len(W)), spread.latents(len(W))
        self.seed, self.every = seed, max(round(spec.every * total), spec.window)
        self.last = int(spec.until * total)
        self.axes_ND = self._drawn(0, self.n)[self.own.start : self.own.stop].to(W)
        self.moments_N6 = torch.zeros(len(W), 6, dtype=torch.float64, device=W.device)
        self.tokens = 0
        self.stopped_at: int | None = None
        self.records: list[dict] = []

    def ends_window(self, done: int) -> bool:
        """Whether `make` is due after `done` primary steps: at every time of births, and once after the last one, to
        see what its births saved. The first time is left out, as the dictionary still changes quickly before it.
        """
        if done % self.every or done < 2 * self.every:
            return False
        return done <= self.last or bool(self.open_records())

    def is_looking(self, done: int) -> bool:
        """Whether the step after `done` steps is looked at: one of EVERY in a window."""
        if done % EVERY:
            return False
        end = (done // self.every + 1) * self.every
        return end - self.spec.window <= done and self.ends_window(end)

    def open_records(self) -> list[dict]:
        """Births whose next window has not ended yet."""
        return [record for record in self.records if record["saved"] is None]

    def tensors(self) -> dict[str, Tensor]:
        """The state for a checkpoint that has a row per latent."""
        return {"axes_ND": self.axes_ND, "moments_N6": self.moments_N6}

    def facts(self) -> dict:
        """The rest of the state, JSON-able."""
        return {"tokens": self.tokens, "stopped_at": self.stopped_at, "records": self.records}

    def look(self, passed: Reconstruction, kernels) -> None:
        """Adds a step's firings and residual to the statistics, and turns the axes."""
        kept, r, W = passed.kept, passed.residuals[-1], self.learner.weights.W_dec_ND
        v = self.axes_ND
        v.addcmul_(W, torch.linalg.vecdot(v, W)[:, None], value=-1)
        v.div_(torch.linalg.vector_norm(v, dim=1, keepdim=True).clamp_(min=1e-12))
        p = kernels.entry_dots(kept, r, v)
        (turn,) = kernels.latent_rows(kept, (p,), (r,))
        turn.addcmul_(W, torch.linalg.vecdot(turn, W)[:, None], value=-1)
        length = torch.linalg.vector_norm(turn, dim=1, keepdim=True)
        v.addcdiv_(turn, length.clamp_(min=1e-12), value=TURN)
        z = kept.values.double()
        rho = p.double() / z
        square = rho * rho
        for column, values in enumerate((torch.ones_like(z), rho, square, square * rho, square * square, z * z)):
            self.moments_N6[:, column] += kept.latent_sums(values)
        self.tokens += kept.n_rows

    def make(self, done: int) -> int:
        """Ends a window: completes the records of earlier births, makes new ones, and returns how many."""
        stats = evidence(self.spread.all_latents(self.moments_N6).cpu().numpy(), self.tokens)
        self._follow(stats, done)
        pairs = []
        if done <= self.last and self.stopped_at is None:
            pairs = chosen(stats, self._losses(stats), self.spec, round(self.spec.share * self.n))
        if pairs:
            self._write(pairs, stats, done)
        self.moments_N6.zero_()
        self.tokens = 0
        return len(pairs)

    def _losses(self, stats: Evidence) -> np.ndarray:
        W_ND = self.spread.all_latents(self.learner.weights.W_dec_ND)
        live = torch.from_numpy(stats.count > 0).to(W_ND.device)
        return stats.use * left_over(W_ND, live).double().cpu().numpy()

    def _follow(self, stats: Evidence, done: int) -> None:
        late = self.open_records()
        for record in late:
            i, j = record["parent"], record["child"]
            record["saved"] = float(record["promised"] - stats.gain[i] - stats.gain[j])
            record["use"] = [float(stats.use[i]), float(stats.use[j])]
            record["firings"] = [int(stats.count[i]), int(stats.count[j])]
        if late and sum(record["saved"] for record in late) < LEAST_KEPT * sum(r["promised"] for r in late):
            self.stopped_at = done

    def _write(self, pairs: list[tuple[int, int]], stats: Evidence, done: int) -> None:
        fits = [two_values(stats.mean[i], stats.variance[i], stats.skew[i]) for i, _ in pairs]
        parents, children = (list(side) for side in zip(*pairs, strict=True))
        weights = self.learner.weights
        w, v, e = (self._rows(table, parents) for table in (weights.W_dec_ND, self.axes_ND, weights.W_enc_ND))
        # orthogonal to w, as it was when rho was computed
        v = torch.nn.functional.normalize(v - torch.linalg.vecdot(v, w)[:, None] * w, dim=1)
        upper, lower = (torch.tensor([float(fit[side]) for fit in fits]).to(w) for side in (1, 2))
        pair: Twins = twins(w, v, e, upper, lower)
        self._put(parents, pair.a_MD, pair.enc_a_MD)
        self._put(children, pair.b_MD, pair.enc_b_MD)
        self._inherit(parents, children)
        fresh = self._drawn(done, 2 * len(pairs)).to(w)
        for latents, rows in ((parents, fresh[::2]), (children, fresh[1::2])):
            self._write_rows(self.axes_ND, latents, rows)
        for (i, j), fit in zip(pairs, fits, strict=True):
            facts = {"step": done, "parent": i, "child": j, "promised": float(stats.gain[i])}
            facts |= {
                "two_points": float(stats.two_points[i]),
                "share": float(fit[0]),
                "use_before": float(stats.use[i]),
            }
            self.records.append(facts | {"replaced_use": float(stats.use[j]), "saved": None})

    def _put(self, latents: list[int], rows_MD: Tensor, encoders_MD: Tensor) -> None:
        weights, here = self.learner.weights, self._here(latents)
        self._write_rows(weights.W_dec_ND, latents, rows_MD)
        self._write_rows(weights.W_enc_ND, latents, encoders_MD)
        self.learner.optimiser.forget(here)
        self.learner.silent_N[here] = 0

    def _inherit(self, parents: list[int], children: list[int]) -> None:
        """A child takes over its parent's bias, threshold and firing rate."""
        weights = self.learner.weights
        for numbers in (weights.b_enc_N, weights.log_threshold_N, self.learner.rate_N):
            if numbers is not None:
                self._write_rows(numbers, children, self._rows(numbers[:, None], parents)[:, 0])

    def _rows(self, table: Tensor, latents: list[int]) -> Tensor:
        """Rows of any latents, on whichever process they lie: [M, ...]."""
        out = torch.zeros(len(latents), table.shape[1], dtype=table.dtype, device=table.device)
        mine = [place for place, latent in enumerate(latents) if latent in self.own]
        out[mine] = table[[latents[place] - self.own.start for place in mine]]
        return self.spread.over_latents(out)

    def _write_rows(self, table: Tensor, latents: list[int], rows: Tensor) -> None:
        mine = [place for place, latent in enumerate(latents) if latent in self.own]
        table[[latents[place] - self.own.start for place in mine]] = rows[mine]

    def _here(self, latents: list[int]) -> list[int]:
        return [latent - self.own.start for latent in latents if latent in self.own]

    def _drawn(self, step: int, rows: int) -> Tensor:
        """Random rows [rows, d] that depend on seed and step alone."""
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + step)
        return torch.randn(rows, self.learner.weights.W_dec_ND.shape[1], generator=generator)
