"""The nearest row of every row, which OrtSAE and C2R need, computed a tile of cosines at a time."""

import torch
from torch import Tensor

from metasae.train.penalties.scene import Scene

# Cosines of a tile: 16 MB.
TILE = 1 << 22


def nearest_rows(scene: Scene, groups: tuple[Tensor, ...] | None = None) -> tuple[Tensor, Tensor]:
    """(c_i, j(i)) of all n latents: fp32 and int64 [n]. Each rank looks for those of its own latents.

    j(i) is the other row of i's group with the largest cosine, the first of equal ones; c_i is that cosine, or 0 where
    it is negative. groups: int64 latents, each latent in one group; None: all are one group. A latent that is alone in
    its group has c_i = 0 and j(i) = i.
    """
    rows_ND, own = scene.rows_ND, scene.own
    cosine_and_nearest = torch.empty(len(own), 2, dtype=torch.float64, device=rows_ND.device)
    for group in groups or (torch.arange(len(rows_ND), device=rows_ND.device),):
        # one group of all latents in their order needs no copy
        rows = rows_ND if groups is None else rows_ND[group]
        for here in among(group, own).nonzero().squeeze(1).split(max(1, TILE // len(group))):
            cosines = (rows if len(here) == len(rows) else rows[here]) @ rows.t()
            cosines[torch.arange(len(here), device=here.device), here] = -1.0
            c, nearest = cosines.max(dim=1)
            cosine_and_nearest[group[here] - own.start] = torch.stack(
                [c.clamp_(min=0).double(), group[nearest].double()], dim=1
            )
    # both in one message: float64 holds the cosine (fp32) and the index exactly
    c_N, nearest_N = scene.all_latents(cosine_and_nearest).unbind(1)
    return c_N.float(), nearest_N.long()


def among(latents: Tensor, own: range) -> Tensor:
    """Bool [r]: which of `latents` are in `own`."""
    return (latents >= own.start) & (latents < own.stop)
