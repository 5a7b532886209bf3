"""Small stand-ins for the data room, held in memory."""

import numpy as np
import torch

from metasae.sae.sae import SAE, SAEConfig


class FakeSplit:
    """Rows x [T, d] as a split: documents of `document_length` tokens, positions counting up from 1 (0 is a special
    token)."""

    def __init__(self, x, document_length=16, tokens=None):
        self.x = torch.as_tensor(x, dtype=torch.float32)
        place = np.arange(len(self.x), dtype=np.int32)
        self.documents = (place // document_length).astype(np.int32)
        self.positions = (place % document_length + 1).astype(np.int32)
        self.tokens = np.asarray(place % 7 if tokens is None else tokens, dtype=np.int32)

    @property
    def n_tokens(self):
        return len(self.x)

    def blocks(self, size):
        for start in range(0, len(self.x), size):
            yield self.x[start : start + size]

    def rows(self, indices):
        return self.x[torch.as_tensor(np.asarray(indices, dtype=np.int64))]


class FakeCache:
    def __init__(self, **splits):
        self.splits = splits
        self.d = next(iter(splits.values())).x.shape[1]
        self.fingerprint, self.text = "fake", "random words"

    def split(self, name):
        return self.splits[name]


def random_sae(d=8, n=24, k=4, seed=0, normalize="none", threshold=None):
    """An SAE with every parameter random, biases included, so that a forgotten bias shows."""
    generator = torch.Generator().manual_seed(seed)
    sae = SAE(SAEConfig(d_in=d, d_sae=n, k=k, normalize=normalize, metadata={"seed": seed}))
    sae.init_weights(generator)
    sae.W_enc.add_(0.2 * torch.randn(d, n, generator=generator))
    sae.b_enc.copy_(0.3 * torch.randn(n, generator=generator))
    sae.b_dec.copy_(0.3 * torch.randn(d, generator=generator))
    if threshold is not None:
        sae.threshold = torch.full([n], float(threshold))
    return sae


def random_split(n_tokens=200, d=8, seed=1, document_length=16):
    generator = torch.Generator().manual_seed(seed)
    return FakeSplit(torch.randn(n_tokens, d, generator=generator) * 2 + 0.5, document_length)
