"""Co-firing-weighted cosine: rows of latents that fire on the same tokens should be orthogonal.

    P = (1/(T L)) sum_{tokens t} sum_{i != j firing on t} (w_i . w_j)^2,      L = mean over tokens of pairs on

over the first T tokens of the batch. With C_ij the number of those tokens on which i and j both fire,

    dP/dw_i = (4/(T L)) sum_j C_ij (w_i . w_j) w_j.

Only pairs that co-fire are touched: C is sparse, and the cosines are taken where it is not zero.
"""

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from metasae.sae.kernels import fast
from metasae.sae.kernels.kept import Kept
from metasae.train.penalties.scene import Scene

TOKENS = 256


def cofiring_weighted_cosine(scene: Scene) -> tuple[Tensor, Tensor]:
    W = scene.W_dec_ND
    pairs = _cofirings(scene.kept, TOKENS)
    total = pairs.values.sum().clamp(min=1.0)
    cosines = fast.entry_dots(pairs, W, W)
    weighted = pairs.with_values(pairs.values * cosines)
    return (weighted.values * cosines).sum() / total, fast.decode(weighted, W) * (4 / total)


def _cofirings(kept: Kept, tokens: int) -> Kept:
    """C [n, n] without its diagonal, as entries."""
    n, end = kept.n_latents, int(kept.offsets[min(tokens, kept.n_rows)])
    latents, rows = kept.latents[:end].cpu().numpy(), kept.rows[:end].cpu().numpy()
    fires = sparse.csr_matrix(
        ((kept.values[:end] > 0).cpu().numpy().astype(np.float32), (rows, latents)), shape=(max(1, min(tokens, kept.n_rows)), n)
    )
    C = (fires.T @ fires).tocoo()
    off = (C.row != C.col) & (C.data > 0)
    order = np.lexsort((C.col[off], C.row[off]))
    flat = C.row[off].astype(np.int64)[order] * n + C.col[off][order]
    device = kept.values.device
    return Kept.from_flat(torch.from_numpy(flat).to(device), torch.from_numpy(C.data[off][order]).to(device), n, n)
