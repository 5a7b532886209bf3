"""Made-up measures with known errors: seeds x document blocks as crossed random effects."""

import math

import numpy as np


def effects(cases, seeds, blocks, seed, text, both=0.0):
    """x [cases, S, B] around 0. text, both: shares of the variance of the mean over everything; seeds have the rest."""
    rng = np.random.default_rng(seed)
    per_seed = rng.standard_normal((cases, seeds, 1)) * math.sqrt(seeds * (1 - text - both))
    per_block = rng.standard_normal((cases, 1, blocks)) * math.sqrt(blocks * text)
    return per_seed + per_block + rng.standard_normal((cases, seeds, blocks)) * math.sqrt(seeds * blocks * both)


def left_out(x):
    """Means over the last axis with one entry left out."""
    return (x.sum(-1, keepdims=True) - x) / (x.shape[-1] - 1)
