"""OrtSAE (arXiv 2509.22033): a penalty on each row's cosine with its nearest row.

    P = (1/n) sum_i max over j != i in i's chunk of max(0, w_i . w_j)^2

The rows are split into new random chunks on every call, so the cost is n * chunk instead of n^2. Rows have unit length,
so the product is the cosine. With j(i) the nearest row and c_i the cosine, the gradients by row i and row j(i) are

    dP/dw_i += (2/n) c_i w_j(i),      dP/dw_j(i) += (2/n) c_i w_i.

Only positive cosines count, as two latents with opposite rows do not fire for the same thing.

Over ranks: each rank has all rows, finds j(i) for its own i, and receives the c_i and j(i) of the others, as a j(i) may
be one of its own rows.
"""

import torch

from metasae.train.penalties.nearest import among, nearest_rows
from metasae.train.penalties.scene import Charge, Scene, multiplies, over_ranks

CHUNK = 2048


@multiplies(lambda n: min(n, CHUNK))
@over_ranks
def largest_cosines(scene: Scene) -> Charge:
    rows_ND, own, n = scene.rows_ND, scene.own, scene.n_latents
    generator = torch.Generator().manual_seed(scene.seed * 1_000_003 + scene.step)
    chunks = torch.randperm(n, generator=generator).to(rows_ND.device).split(CHUNK)
    c_N, nearest_N = nearest_rows(scene, chunks)
    value, pull_N = rows_ND.new_zeros(()), (2 / n) * c_N
    mine = slice(own.start, own.stop)
    gradient = rows_ND[nearest_N[mine]].mul_(pull_N[mine, None])
    for chunk in chunks:
        value += c_N[chunk].square().sum() / n
        pulls = chunk[among(nearest_N[chunk], own)]
        gradient.index_add_(0, nearest_N[pulls] - own.start, pull_N[pulls, None] * rows_ND[pulls])
    return Charge(value, gradient)
