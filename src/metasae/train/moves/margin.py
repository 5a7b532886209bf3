"""A margin that is let go (`train.margin`, arms `atomic` and `atomic-joint`).

    m_i  = mean activation of latent i where it fires, over the last hundred steps or so
    keep the k*B largest of a_i - c(t) m_i over the batch; their values are a_i

A latent then fires where its pre-activation is large for this latent, and not wherever it lies above the threshold that
all latents share. c goes from `start` to `end`, linearly between the shares `hold` and `gone` of all steps. After
training the thresholds are theta_i = tau + end * m_i, with tau such that L0 is k. The result is a plain JumpReLU SAE.
"""

from metasae.recipe.tables import Margin
from metasae.train.moves import schedule


def share(margin: Margin, step: int, total: int) -> float:
    """c at a primary step (counted from 0) of `total`."""
    return schedule.value(margin, margin.start, margin.end, step, total)
