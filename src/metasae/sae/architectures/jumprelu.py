"""JumpReLU (arXiv 2407.14435): z = pre * H(pre - theta), a learned threshold per latent, an L0 target.

H has no gradient by theta. The paper's pseudo-derivatives take a rectangle K of width eps around the threshold:

    dz/dtheta = -(theta / eps) K((pre - theta) / eps),      dH/dtheta = -(1 / eps) K((pre - theta) / eps)
    L0 term   = l0_coef * (L0 / k - 1)^2,                   L0 = mean over tokens of sum_j H(pre_j - theta_j)

theta = exp(log_threshold) is positive. Entries just below theta are kept with z = 0, as they have a gradient by theta
too.

Adam changes a log-threshold by at most lr a step, whatever the weight of the L0 term, and that is too slow for L0 to
reach k. So the common level of all thresholds is adjusted separately from their differences (not with `l0 = "free"`):

    level:  log_threshold starts where the first batch has L0 = k;   after a step .1 log(L0 / k) is added to all of it
    price:  P = -sum_j dL/dlog_threshold_j / sum_j dL0/dlog_threshold_j,     L the loss without the L0 term
    the gradient of the thresholds is that of L + P L0 + L0 term, P held fixed

P is the multiplier of the constraint L0 = k. With it a common change of all thresholds leaves the sum unchanged to
first order, so the gradients only distribute the firings among latents.
"""

import math

import torch

from metasae.sae.architectures.base import Architecture
from metasae.sae.architectures.follow import log_level, miss
from metasae.sae.kernels.kept import Kept

# Share of the miss by which the level moves in a step. L0 falls two to three times as fast as the level rises, so a
# miss is corrected in about five steps.
_LEVEL_RATE = 0.1


class JumpReLU(Architecture):
    own_threshold = True

    @property
    def follows(self):
        return self.options.l0 == "k"

    def threshold_init(self):
        return math.log(self.options.threshold)

    def begin(self, pre_BN, weights):
        weights.log_threshold_N.copy_(log_level(pre_BN, self.options.k, self.spread))

    def steer(self, l0, weights):
        weights.log_threshold_N.add_(_LEVEL_RATE * miss(l0, self.options.k))

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
        off = n_firings / (kept.n_rows * self.options.k) - 1
        dl0 = 2 * self.options.l0_coef * off / (kept.n_rows * self.options.k)
        if self.follows:
            dl0 = dl0 + self._price(inside * theta_K, theta_K * dz_K)
        dtheta_K = -inside * (theta_K * dz_K + dl0)
        return self.options.l0_coef * off.square(), dz_K * fires, kept.latent_sums(dtheta_K * theta_K)

    def _price(self, near_K, worth_K):
        """P / n_rows, 0-dim. near_K: -dH/dlog_threshold; worth_K: dL/dz theta, below 0 where a firing lowers the
        loss."""
        both = torch.stack([(near_K * worth_K).sum(), near_K.sum()])
        worth, near = self.spread.over_latents(both)
        return -worth / near.clamp(min=1e-12)

    def inference_threshold(self, weights):
        return weights.log_threshold_N.exp()
