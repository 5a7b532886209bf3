"""What the arm `atomic` changes in a primary step: a margin (`train.margin`), and a nesting that ends (`train.nest`).

Margin, with m_i the mean activation of latent i where it fires, over the last hundred steps or so:

    keep the k*B largest of a_i - c m_i over the batch; their values are a_i

A latent then fires where its pre-activation is large for this latent, and not wherever it lies above the threshold that
all latents share. After training the thresholds are theta_i = tau + c m_i, with tau such that L0 is k. The result is a
plain JumpReLU SAE.

Nesting, with t the share of all steps that are done:

    L2(t) = mean (x - xh)^2 + beta(t) sum_m mean (x - xh_m)^2
    xh_m  = sg(b_dec) + sum over latents j < end_m of z_j w_j

beta is `weight` until the share `hold`, then falls linearly to 0 at the share `gone`. The entries that fire are
selected once, over all latents. The inner terms have a gradient by the first latents alone. These learn broad features,
as in a Matryoshka SAE (arXiv 2503.17547), and narrower latents do not absorb them. Once beta is 0 the step is that of
the SAE without nesting.
"""

from torch import Tensor

from metasae.recipe.recipe import Recipe
from metasae.recipe.registry import ARMS
from metasae.recipe.tables import Nest
from metasae.sae.architectures.matryoshka import ends_of
from metasae.sae.gradients import Prefixes
from metasae.sae.kernels.kept import Kept
from metasae.sae.spread import Whole
from metasae.train.learner import Learner


class Plain:
    """The plain SAE of all other arms: neither margin nor nesting."""

    def prefixes(self, done: int, n_here: int, spread: Whole) -> Prefixes | None:
        """The prefixes that the step after `done` steps takes its error over; None for those of the architecture.

        n_here: latents of this process. spread: how the latents lie over processes.
        """
        return None

    def offset(self, learner: Learner) -> Tensor | None:
        """How far each latent's pre-activation must lie above the common threshold: [n], >= 0, in the units of the
        pre-activations; None for no margin. learner: whose latents they are, all of them or a process's.
        """
        return None

    def look(self, kept: Kept, learner: Learner) -> None:
        """Takes in what fired in a step, after `Learner.count` did."""


class Atomic(Plain):
    """Margin and nesting. total: primary steps of the training."""

    def __init__(self, nest: Nest, margin: float, total: int):
        self.nest, self.margin, self.total = nest, margin, total

    def prefixes(self, done, n_here, spread):
        beta = weight(self.nest, done, self.total)
        if not beta:
            return None
        ends = ends_of(self.nest.shares, n_here, spread)
        return Prefixes(ends, (beta,) * (len(ends) - 1) + (1.0,), inner_bias=False)

    def offset(self, learner):
        return self.margin * learner.mean_activation() if self.margin else None

    def look(self, kept, learner):
        learner.sum_activations(kept)


def weight(nest: Nest, step: int, total: int) -> float:
    """beta at a primary step (counted from 0) of `total`."""
    t = step / total
    if t >= nest.gone:
        return 0.0
    return nest.weight * ((nest.gone - t) / (nest.gone - nest.hold) if t > nest.hold else 1.0)


def changes_of(recipe: Recipe, arm: str, total: int) -> Plain:
    """What an arm changes in its primary steps."""
    return Atomic(recipe.train.nest, recipe.train.margin, total) if ARMS[arm].atomic else Plain()
