"""OrtSAE (arXiv 2509.22033): rows should be far from their nearest row.

    P = (1/n) sum_i max over j != i in i's chunk of max(0, w_i . w_j)^2

Rows are dealt into random chunks, anew each time, so the cost is n * chunk instead of n^2. Rows have unit length, so
the product is the cosine. With j(i) the nearest row and c_i the cosine, row i and row j(i) each receive

    dP/dw_i += (2/n) c_i w_j(i),      dP/dw_j(i) += (2/n) c_i w_i.

Only positive cosines count: a row opposite to another shares no meaning that would fire with it.

Over ranks: each has all rows, finds j(i) for its own i, and is told the others' c_i and j(i), of which those that name
an own row pull on it.
"""

import torch
from torch import Tensor

from metasae.train.penalties.scene import Scene, over_ranks

CHUNK = 2048


@over_ranks
def largest_cosines(scene: Scene) -> tuple[Tensor, Tensor]:
    rows_ND, own, n = scene.rows_ND, scene.own, scene.n_latents
    generator = torch.Generator().manual_seed(scene.seed * 1_000_003 + scene.step)
    chunks = torch.randperm(n, generator=generator).to(rows_ND.device).split(CHUNK)
    c_N, nearest_N = _nearest(scene, chunks)
    value, pull_N = rows_ND.new_zeros(()), (2 / n) * c_N
    mine = slice(own.start, own.stop)
    gradient = rows_ND[nearest_N[mine]].mul_(pull_N[mine, None])
    for chunk in chunks:
        value += c_N[chunk].square().sum() / n
        pulls = chunk[_among(nearest_N[chunk], own)]
        gradient.index_add_(0, nearest_N[pulls] - own.start, pull_N[pulls, None] * rows_ND[pulls])
    return value, gradient


def _nearest(scene: Scene, chunks: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
    """(c_i, or 0 where it is negative; j(i)) of all latents: fp32 and int64 [n]."""
    rows_ND, own = scene.rows_ND, scene.own
    cosine_and_nearest = torch.empty(len(own), 2, dtype=torch.float64, device=rows_ND.device)
    for chunk in chunks:
        rows = rows_ND[chunk]
        here = _among(chunk, own).nonzero().squeeze(1)
        # one process needs no copy
        cosines = (rows if len(here) == len(rows) else rows[here]) @ rows.t()
        cosines[torch.arange(len(here), device=here.device), here] = -1.0
        c, nearest = cosines.max(dim=1)
        cosine_and_nearest[chunk[here] - own.start] = torch.stack(
            [c.clamp_(min=0).double(), chunk[nearest].double()], dim=1
        )
    # both in one message: in float64 either is exact
    c_N, nearest_N = scene.all_latents(cosine_and_nearest).unbind(1)
    return c_N.float(), nearest_N.long()


def _among(latents: Tensor, own: range) -> Tensor:
    return (latents >= own.start) & (latents < own.stop)
