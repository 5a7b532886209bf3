"""A nesting that is let go (`train.nest`, arms `atomic` and `atomic-joint`).

    L2(t) = mean (x - xh)^2 + beta(t) sum_m mean (x - xh_m)^2
    xh_m  = sg(b_dec) + sum over latents j < end_m of z_j w_j

beta is `weight` until the share `hold` of all steps, then falls linearly to 0 at the share `gone`. The entries that
fire are selected once, over all latents. The inner terms have a gradient by the first latents alone. These learn broad
features, as in a Matryoshka SAE (arXiv 2503.17547), and narrower latents do not absorb them. Once beta is 0 the step is
that of the plain SAE.
"""

from metasae.recipe.tables import Nest
from metasae.sae.architectures.matryoshka import ends_of
from metasae.sae.gradients import Prefixes
from metasae.sae.spread import Whole
from metasae.train.moves import schedule


def weight(nest: Nest, step: int, total: int) -> float:
    """beta at a primary step (counted from 0) of `total`."""
    return schedule.value(nest, nest.weight, 0.0, step, total)


def prefixes(nest: Nest, step: int, total: int, n_here: int, spread: Whole) -> Prefixes | None:
    """The prefixes over which the step's error is summed; None where beta is 0."""
    beta = weight(nest, step, total)
    if not beta:
        return None
    ends = ends_of(nest.shares, n_here, spread)
    return Prefixes(ends, (beta,) * (len(ends) - 1) + (1.0,), inner_bias=False)
