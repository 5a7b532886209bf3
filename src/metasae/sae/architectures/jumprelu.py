"""JumpReLU (arXiv 2407.14435): z = pre * H(pre - theta), a learned threshold per latent, an L0 target.

H has no gradient, so theta gets the paper's pseudo-derivatives, with a rectangle K of width eps around the threshold:

    dz/dtheta = -(theta / eps) K((pre - theta) / eps),      dH/dtheta = -(1 / eps) K((pre - theta) / eps)
    L0 term   = l0_coef * (L0 / k - 1)^2,                   L0 = mean over tokens of sum_j H(pre_j - theta_j)

theta = exp(log_threshold) stays positive. Entries just below theta are carried with z = 0, as they move theta too.
"""

import math

from metasae.sae.architectures.base import Architecture
from metasae.sae.kernels.kept import Kept


class JumpReLU(Architecture):
    own_threshold = True

    def threshold_init(self):
        return math.log(self.options.threshold)

    def select(self, pre_BN, weights, k, cut, kernels):
        theta_N = weights.log_threshold_N.exp()
        near = (pre_BN > (theta_N - self.options.bandwidth / 2).to(pre_BN.dtype)) & (pre_BN > 0)
        kept = Kept.where(pre_BN, near)
        return kept.with_values(kept.values * (kept.values > theta_N[kept.latents.long()])), cut

    def sparsity(self, pre_K, kept, dz_K, weights):
        eps = self.options.bandwidth
        theta_K = weights.log_threshold_N.exp()[kept.latents.long()]
        fires = pre_K > theta_K
        inside = ((pre_K - theta_K).abs() < eps / 2).to(dz_K.dtype) / eps
        n_firings = self.spread.over_latents(fires.sum().reshape(1))[0]
        miss = n_firings / (kept.n_rows * self.options.k) - 1
        dl0 = 2 * self.options.l0_coef * miss / (kept.n_rows * self.options.k)
        dtheta_K = -inside * (theta_K * dz_K + dl0)
        return self.options.l0_coef * miss.square(), dz_K * fires, kept.latent_sums(dtheta_K * theta_K)

    def inference_threshold(self, weights):
        return weights.log_threshold_N.exp()
