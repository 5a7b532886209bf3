"""A dense joint step in plain torch, written from the equations: what the fast engine is measured against.

Autograd, one flat topk, dense products, torch's default Adam; the dtype is that of the tensors it is given.
"""

import torch

from metasae.sae.optimiser import unit_rows_
from metasae.sae.sae import token_normalise


class DenseSAE:
    """W_enc [d, n], W_dec [n, d], b_dec [d]; BatchTopK with k per row."""

    def __init__(self, d: int, n: int, k: int, lr: float, seed: int):
        generator = torch.Generator().manual_seed(seed)
        rows = torch.randn(n, d, generator=generator)
        unit_rows_(rows)
        self.k = k
        self.W_dec, self.W_enc = rows.clone().requires_grad_(), rows.t().contiguous().requires_grad_()
        self.b_dec = torch.zeros(d, requires_grad=True)
        self.adam = torch.optim.Adam([self.W_dec, self.W_enc, self.b_dec], lr=lr)
        self.silent = torch.zeros(n)

    def reconstruct(self, x):
        a = torch.relu((x - self.b_dec) @ self.W_enc)
        top = torch.topk(a.flatten(), self.k * x.shape[0])
        z = torch.zeros_like(a.flatten()).scatter(0, top.indices, top.values).view_as(a)
        return a, z, z @ self.W_dec + self.b_dec

    def step(self, x, extra=None, dead=None, k_aux=0):
        a, z, xh = self.reconstruct(x)
        self.silent = torch.where((z > 0).any(0), 0, self.silent + x.shape[0])
        loss = (xh - x).pow(2).mean()
        if dead is not None and dead.any():
            residual = (x - xh).detach()
            top = torch.topk(a[:, dead], min(k_aux, int(dead.sum())), dim=1)
            z_dead = torch.zeros_like(a[:, dead]).scatter(1, top.indices, top.values)
            loss = loss + (z_dead @ self.W_dec[dead] - residual).pow(2).mean() / 32
        if extra is not None:
            loss = loss + extra(self.W_dec)
        self.adam.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_([self.W_dec, self.W_enc, self.b_dec], 1.0)
        with torch.no_grad():
            self.W_dec.grad -= (self.W_dec.grad * self.W_dec).sum(1, keepdim=True) * self.W_dec
            self.adam.step()
            unit_rows_(self.W_dec)
        return loss.detach()


class DenseJoint:
    """The primary and its meta SAE, stepped in turns by the caller."""

    def __init__(self, d: int, n: int, k: int, m: int, k_m: int, lambda2: float = 0.3, sigma_sq: float = 1.0):
        self.primary, self.meta = DenseSAE(d, n, k, 3e-4, 0), DenseSAE(d, m, k_m, 3e-4, 1)
        self.lambda2, self.sigma_sq = lambda2, sigma_sq

    def primary_step(self, x):
        with torch.no_grad():
            rows, mean, std = token_normalise(self.primary.W_dec)
            wh = self.meta.reconstruct(rows)[2] * std + mean

        def penalty(W):
            return self.lambda2 * torch.exp(-(W - wh).pow(2).sum(1) / self.sigma_sq).mean()

        return self.primary.step(x, penalty)

    def meta_step(self):
        return self.meta.step(token_normalise(self.primary.W_dec.detach())[0])
