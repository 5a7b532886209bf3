"""Firing-weighted cosine: a penalty on cosines between rows, weighted by how often both latents fire.

    P = sum_{i != j} f_i f_j (w_i . w_j)^2 / (sum_i f_i)^2,      f: running firing rates

With M = sum_i f_i w_i w_i^T [d, d] the double sum is ||M||_F^2 - sum_i f_i^2 ||w_i||^4, so no n x n matrix is formed:

    dP/dw_i = 4 f_i (M w_i - f_i ||w_i||^2 w_i) / (sum f)^2

This mean over all pairs is metasae's own. The published C2R (arXiv 2606.30609) takes the nearest rows alone, is some
hundred times stronger, and is named `c2r` here. Until 0.1.0 this penalty had that name.

Over ranks: M and the two sums are added over ranks; the rest needs a rank's own rows only.
"""

import torch

from metasae.train.penalties.scene import Charge, Scene, over_ranks


@over_ranks
def firing_weighted_cosine(scene: Scene) -> Charge:
    W, f = scene.W_dec_ND, scene.rate_N
    M = scene.over_latents((W * f[:, None]).t() @ W)
    own = f * W.square().sum(1)
    rates, squares = scene.over_latents(torch.stack([f.sum(), own.square().sum()]))
    total = rates.square().clamp(min=1e-12)
    value = (M.square().sum() - squares) / total
    gradient = (W @ M - own[:, None] * W) * (4 * f / total)[:, None]
    return Charge(value, gradient)
