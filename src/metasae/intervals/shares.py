"""The error of a share of things that are counted: latents of an SAE, or pairs of senses.

A share x of n things has at least the binomial variance p (1 - p) / n, with p from both arms and all seeds together.
Seeds that agree to the last latent say nothing against that: one latent of 3,072 more in each of three seeds has no
spread, and proves nothing. The variance over seeds counts where it is the larger, as it holds the binomial one already.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from metasae.intervals.crossed import Covariance


def at_least_binomial(
    spread: Covariance, a: Sequence[float], b: Sequence[float], a_of: Sequence[float], b_of: Sequence[float]
) -> Covariance:
    """The covariance of (mean a - b, mean b) with the binomial one where that is larger.

    a, b: shares of S seeds. a_of, b_of: of how many things each is a share.
    """
    shares, of = np.array([a, b], float), np.array([a_of, b_of], float)
    p = (shares * of).sum() / of.sum()
    var_a, var_b = p * (1 - p) * (1 / of).mean(axis=1) / shares.shape[1]
    if var_a + var_b <= spread.seeds[0, 0]:
        return spread
    return replace(spread, seeds=np.array([[var_a + var_b, -var_b], [-var_b, var_b]]))
