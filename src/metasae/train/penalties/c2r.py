"""C2R (arXiv 2606.30609): a penalty on each row's cosine with its nearest row, weighted by how much both latents fire.

    P = (1/n) sum_i (a_i + a_j(i)) c_i^2,     c_i = max(0, cos_ij(i)),     a_i = ||f_i||

j(i) is the nearest of all other rows, equal ones the first, and f_i [B] are latent i's activations on this batch, zero
where it is not kept. The published coefficient is 5. Rows have unit length, so the product is the cosine. The gradient
goes to both rows of a pair, and through both norms into the activations z, so into encoder and decoder bias too. With
s_i = a_i + a_j(i),

    dP/dw_i   += (2/n) s_i c_i w_j(i),              dP/dw_j(i) += (2/n) s_i c_i w_i
    dP/da_i    = (1/n) (c_i^2 + sum over i' with j(i') = i of c_i'^2)
    dP/dz_bi   = dP/da_i  z_bi / a_i                (0 for a latent that does not fire)

Over ranks: each rank has all rows, finds j(i) for its own i, and receives the c_i, j(i) and a_i of the others.
"""

import torch

from metasae.train.penalties.nearest import among, nearest_rows
from metasae.train.penalties.scene import Charge, Scene, multiplies, over_ranks


@multiplies(lambda n: n)
@over_ranks
def nearest_cosines_by_firing(scene: Scene) -> Charge:
    rows_ND, kept, own, n = scene.rows_ND, scene.kept, scene.own, scene.n_latents
    c_N, nearest_N = nearest_rows(scene)
    own_norm = kept.latent_sums(kept.values.square()).sqrt()
    norm_N = scene.all_latents(own_norm)
    both_N = norm_N + norm_N[nearest_N]
    value = (both_N * c_N.square()).sum() / n

    mine, pull_N = slice(own.start, own.stop), (2 / n) * both_N * c_N
    pulled = among(nearest_N, own).nonzero().squeeze(1)
    gradient = rows_ND[nearest_N[mine]].mul_(pull_N[mine, None])
    gradient.index_add_(0, nearest_N[pulled] - own.start, pull_N[pulled, None] * rows_ND[pulled])

    d_norm = c_N[mine].square().index_add_(0, nearest_N[pulled] - own.start, c_N[pulled].square()) / n
    per_activation = torch.where(own_norm > 0, d_norm / own_norm, 0.0)
    return Charge(value, gradient, kept.values * per_activation[kept.latents.long()])
