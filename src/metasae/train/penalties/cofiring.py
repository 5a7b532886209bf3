"""Co-firing-weighted cosine: a penalty on cosines between the rows of latents that fire on the same tokens.

    P = (1/(T L)) sum_{tokens t} sum_{i != j firing on t} (w_i . w_j)^2,      L = mean over tokens of pairs on

over the first T tokens of the batch. With C_ij the number of those tokens on which i and j both fire,

    dP/dw_i = (4/(T L)) sum_j C_ij (w_i . w_j) w_j.

C is sparse, and cosines are computed only where it is not zero. Over ranks: each rank takes the pairs of its own i with
every j, for which it has all rows and all firings on those tokens; the two sums are added over ranks.
"""

import numpy as np
import torch
from scipy import sparse

from metasae.sae.kernels import fast
from metasae.sae.kernels.kept import Kept
from metasae.train.penalties.scene import Charge, Scene, over_ranks

TOKENS = 256


@over_ranks
def cofiring_weighted_cosine(scene: Scene) -> Charge:
    rows = scene.rows_ND
    pairs = _cofirings(scene, TOKENS)
    cosines = fast.entry_dots(pairs, scene.W_dec_ND, rows)
    weighted = pairs.with_values(pairs.values * cosines)
    total, squares = scene.over_latents(torch.stack([pairs.values.sum(), (weighted.values * cosines).sum()]))
    total = total.clamp(min=1.0)
    return Charge(squares / total, fast.decode(weighted, rows) * (4 / total))


def _cofirings(scene: Scene, tokens: int) -> Kept:
    """C [n_r, n] of the latents here with all, without i = j, as entries."""
    kept, own, n = scene.kept, scene.own, scene.n_latents
    tokens = min(tokens, kept.n_rows)
    end = int(kept.offsets[tokens])
    on = kept.values[:end] > 0
    places = scene.all_latents(kept.rows[:end][on].long() * n + kept.latents[:end][on] + own.start).cpu().numpy()
    fires = sparse.csr_matrix((np.ones(len(places), np.float32), np.divmod(places, n)), shape=(max(1, tokens), n))
    C = (fires[:, own.start : own.stop].T @ fires).tocoo()
    off = C.row + own.start != C.col
    order = np.lexsort((C.col[off], C.row[off]))
    flat = C.row[off].astype(np.int64)[order] * n + C.col[off][order]
    device = kept.values.device
    return Kept.from_flat(
        torch.from_numpy(flat).to(device), torch.from_numpy(C.data[off][order]).to(device), len(own), n
    )
