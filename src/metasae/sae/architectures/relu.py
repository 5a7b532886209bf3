"""ReLU with an L1 term: every positive entry fires and costs its size.

L1 = l1 * mean over tokens of sum_j z_j      (rows of W_dec are unit, so no norm stands beside z)
"""

from metasae.sae.architectures.base import Architecture
from metasae.sae.kernels.kept import Kept


class ReLU(Architecture):
    own_threshold = True

    def select(self, pre_BN, weights, k, cut, kernels):
        return Kept.where(pre_BN, pre_BN > 0), cut

    def sparsity(self, pre_K, kept, dz_K, weights):
        scale = self.options.l1 / kept.n_rows
        loss = kept.values.sum() * scale
        return self.spread.over_latents(loss.reshape(1))[0], dz_K + scale, None

    def inference_threshold(self, weights):
        return weights.b_dec_D.new_zeros(weights.W_dec_ND.shape[0])
