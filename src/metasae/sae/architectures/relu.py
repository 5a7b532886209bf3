"""ReLU with an L1 term: every positive entry fires.

L1 = l1 * mean over tokens of sum_j z_j      (rows of W_dec are unit, so no norm stands beside z)

The same l1 gives another L0 with every model, n, lr and number of steps. So the weight starts at l1 and is adjusted
until L0 is k (`follow.Price`); with `l0 = "free"` it stays l1.

Without an encoder bias half of all entries are positive at the start. Latents can then become sparse only by turning
against the mean input, and most become dead at once. So an SAE whose L0 is adjusted to k has an encoder bias, which
starts where the first batch has L0 = k.
"""

from metasae.sae.architectures.base import Architecture
from metasae.sae.architectures.follow import Price, log_level
from metasae.sae.kernels.kept import Kept
from metasae.sae.spread import WHOLE


class ReLU(Architecture):
    own_threshold = True

    def __init__(self, options, spread=WHOLE):
        super().__init__(options, spread)
        self.price = Price(options.l1, options.k)

    @property
    def follows(self):
        return self.options.l0 == "k"

    @property
    def needs_bias(self):
        return self.follows

    def begin(self, pre_BN, weights):
        weights.b_enc_N.sub_(log_level(pre_BN, self.options.k, self.spread).exp())

    def steer(self, l0, weights):
        self.price.update(l0)

    def numbers(self):
        return self.price.numbers()

    def load(self, numbers, device):
        self.price.load(numbers, device)

    def select(self, pre_BN, weights, k, cut, kernels):
        return Kept.where(pre_BN, pre_BN > 0), cut

    def sparsity(self, pre_K, kept, dz_K, weights):
        scale = (self.price.weight if self.follows else self.options.l1) / kept.n_rows
        loss = kept.values.sum() * scale
        return self.spread.over_latents(loss.reshape(1))[0], dz_K + scale, None

    def inference_threshold(self, weights):
        return weights.b_dec_D.new_zeros(weights.W_dec_ND.shape[0])
