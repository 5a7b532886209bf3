"""Which latents a dictionary can spare: those whose decoder row a few others rebuild, as a meta SAE would.

    left_i = min ||w_i - sum_{j in S} c_j w_j||^2 over c, for a set S of PARTS other live rows

S is chosen greedily, the row first that has the largest |cosine| with what is left (orthogonal matching pursuit; Y.
Pati, R. Rezaiifar and P. Krishnaprasad, Asilomar 1993). Rows have unit length, so left_i is between 0 and 1: near 0 the
others can take over what latent i says, near 1 nothing can.
"""

import torch
from torch import Tensor

PARTS = 4
# Rows that are rebuilt at a time, so that the table of cosines stays small.
TILE = 1024
# Added to the squared lengths in the normal equations, for chosen rows that are equal or opposite.
RIDGE = 1e-6


def left_over(W_ND: Tensor, live_N: Tensor) -> Tensor:
    """left [n], fp32. W: unit rows [n, d]; live: bool [n], the rows that may rebuild others."""
    places = torch.arange(len(W_ND), device=W_ND.device)
    return torch.cat([_left_over(W_ND, live_N, tile) for tile in places.split(TILE)])


def _left_over(W_ND: Tensor, live_N: Tensor, tile_T: Tensor) -> Tensor:
    own = W_ND[tile_T]
    rest, chosen = own, tile_T[:, None]
    for _ in range(min(PARTS, len(W_ND) - 1)):
        cosines = (rest @ W_ND.t()).abs_().masked_fill_(~live_N, -1.0)
        # neither the row itself nor one that is chosen already
        cosines.scatter_(1, chosen, -1.0)
        chosen = torch.cat([chosen, cosines.argmax(1, keepdim=True)], dim=1)
        parts_TSD = W_ND[chosen[:, 1:]] * live_N[chosen[:, 1:], None]
        gram = parts_TSD @ parts_TSD.transpose(1, 2)
        gram.diagonal(dim1=1, dim2=2).add_(RIDGE)
        shares = torch.linalg.solve(gram, (parts_TSD @ own[:, :, None]))
        rest = own - (shares * parts_TSD).sum(1)
    return rest.square().sum(1)
