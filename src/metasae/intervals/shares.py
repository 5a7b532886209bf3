"""The error of a share of counted things, such as latents of an SAE or pairs of senses.

A share x of n things has at least the binomial variance p (1 - p) / n, with p from both arms and all seeds together.
Seeds that agree exactly do not contradict this: one more latent of 3,072 in each of three seeds has no spread, and is
no evidence. The variance over seeds is used if it is larger, as it contains the binomial one.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from metasae.intervals.crossed import Covariance


def at_least_binomial(
    spread: Covariance, a: Sequence[float], b: Sequence[float], a_of: Sequence[float], b_of: Sequence[float]
) -> Covariance:
    """The covariance of (mean a - b, mean b), replaced by the binomial covariance if that is larger.

    a, b: shares of S seeds. a_of, b_of: the number of things that each is a share of.
    """
    shares, of = np.array([a, b], float), np.array([a_of, b_of], float)
    p = (shares * of).sum() / of.sum()
    var_a, var_b = p * (1 - p) * (1 / of).mean(axis=1) / shares.shape[1]
    if var_a + var_b <= spread.seeds[0, 0]:
        return spread
    return replace(spread, seeds=np.array([[var_a + var_b, -var_b], [-var_b, var_b]]))
