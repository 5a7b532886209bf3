"""The decomposability penalty and its gradient in closed form (arXiv 2604.03436); `objective.py` is what they must equal."""

import torch
from torch import Tensor

from metasae.sae.gradients import Arithmetic, forward
from metasae.sae.weights import Weights
from metasae.train.objective import meta_input


def meta_residual(W_dec_ND: Tensor, meta: Weights, keep: int, cut: float, mode: str, how: Arithmetic) -> tuple[Tensor, float]:
    """w - wh [n, d] in the rows' own space, and the cut for the next call. Changes nothing in the meta SAE."""
    rows, mean, std = meta_input(W_dec_ND, mode)
    made = forward(rows, meta, keep, cut, how)
    if mean is None:
        return made.residual_BD.neg_(), made.cut
    wh = made.residual_BD.add_(rows).mul_(std).add_(mean)
    return torch.sub(W_dec_ND, wh), made.cut


def penalty_gradient(difference_ND: Tensor, lambda2: float, sigma_sq: float, into_ND: Tensor | None) -> Tensor:
    """mean_i p_i from w - wh [n, d]; adds dL/dw_i = -(2 lambda2 / (n sigma^2)) p_i (w_i - wh_i) to `into_ND` when given."""
    p_N = torch.exp(difference_ND.square().sum(dim=1).div_(-sigma_sq))
    if into_ND is not None:
        scale = -2 * lambda2 / (p_N.numel() * sigma_sq)
        into_ND.addcmul_(difference_ND, p_N[:, None], value=scale)
    return p_N.mean()
