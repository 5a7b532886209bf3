"""Words whose activations are latent activations already, and an SAE that hands them through."""

import numpy as np
import torch

from metasae.data.senses import SenseActivations
from metasae.sae.sae import SAE, SAEConfig

THRESHOLD = 0.5


def word_of(x, sense, name="word", sentence=None):
    sense = np.asarray(sense, dtype=np.int64)
    return SenseActivations(
        word=name,
        senses=tuple("ABCDEF"[: sense.max() + 1]),
        x=torch.as_tensor(np.asarray(x), dtype=torch.float32),
        sense=sense,
        sentence=np.arange(len(sense)) if sentence is None else np.asarray(sentence),
        skipped={"the same sentence again": 2},
        rare={"Z": 1},
        point="blocks.1.hook_resid_pre",
    )


def through(d):
    """z = x where x > 1/2."""
    sae = SAE(SAEConfig(d_in=d, d_sae=d))
    sae.W_enc.copy_(torch.eye(d))
    sae.W_dec.copy_(torch.eye(d))
    sae.threshold = torch.full([d], THRESHOLD)
    return sae


def fires(sizes, recalls, seed=0, noise=0.05):
    """(x [T, l], sense [T]): latent i fires on a random recalls[i][s] of sense s, with activation 1 and a little
    noise."""
    rng = np.random.default_rng(seed)
    sense = rng.permutation(np.repeat(np.arange(len(sizes)), sizes))
    on = rng.random((len(sense), len(recalls))) < np.asarray(recalls, float)[:, sense].T
    return on + noise * rng.normal(size=on.shape), sense
