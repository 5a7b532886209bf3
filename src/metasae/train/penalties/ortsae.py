"""OrtSAE (arXiv 2509.22033): rows should be far from their nearest row.

    P = (1/n) sum_i max over j != i in i's chunk of max(0, w_i . w_j)^2

Rows are dealt into random chunks, anew each time, so the cost is n * chunk instead of n^2. Rows have unit length, so the
product is the cosine. With j(i) the nearest row and c_i the cosine, row i and row j(i) each receive

    dP/dw_i += (2/n) c_i w_j(i),      dP/dw_j(i) += (2/n) c_i w_i.

Only positive cosines count: a row opposite to another shares no meaning that would fire with it.
"""

import torch
from torch import Tensor

from metasae.train.penalties.scene import Scene

CHUNK = 2048


def largest_cosines(scene: Scene) -> tuple[Tensor, Tensor]:
    W = scene.W_dec_ND
    n = W.shape[0]
    generator = torch.Generator().manual_seed(scene.seed * 1_000_003 + scene.step)
    value, gradient = W.new_zeros(()), torch.zeros_like(W)
    for chunk in torch.randperm(n, generator=generator).to(W.device).split(CHUNK):
        rows = W[chunk]
        cosines = (rows @ rows.t()).fill_diagonal_(-1.0)
        c, nearest = cosines.max(dim=1)
        c = c.clamp_(min=0)
        value += c.square().sum() / n
        pull = (2 / n) * c[:, None]
        gradient.index_add_(0, chunk, pull * rows[nearest])
        gradient.index_add_(0, chunk[nearest], pull * rows)
    return value, gradient
