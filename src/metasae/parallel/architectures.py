"""The architectures whose sparsity term needs a sum over all latents, where the latents are spread over ranks.

BatchTopK and TopK have no such term. Matryoshka would need a reconstruction per prefix from every rank; it is refused.
"""

from metasae.errors import UserError
from metasae.sae.architectures.base import Architecture
from metasae.sae.architectures.batchtopk import BatchTopK
from metasae.sae.architectures.jumprelu import JumpReLU
from metasae.sae.architectures.relu import ReLU
from metasae.sae.architectures.topk import TopK
from metasae.sae.spread import Whole


class SpreadReLU(ReLU):
    """ReLU, its L1 term summed over all latents; the gradients are those of each latent alone."""

    def __init__(self, options, spread: Whole):
        super().__init__(options)
        self.spread = spread

    def sparsity(self, pre_K, kept, dz_K, weights):
        loss, dpre_K, _ = super().sparsity(pre_K, kept, dz_K, weights)
        return self.spread.over_latents(loss.reshape(1))[0], dpre_K, None


class SpreadJumpReLU(JumpReLU):
    """JumpReLU with the L0 of all latents in its L0 term; otherwise `JumpReLU.sparsity`, line by line."""

    def __init__(self, options, spread: Whole):
        super().__init__(options)
        self.spread = spread

    def sparsity(self, pre_K, kept, dz_K, weights):
        eps, k = self.options.bandwidth, self.options.k
        theta_K = weights.log_threshold_N.exp()[kept.latents.long()]
        fires = pre_K > theta_K
        inside = ((pre_K - theta_K).abs() < eps / 2).to(dz_K.dtype) / eps
        miss = self.spread.over_latents(fires.sum().reshape(1))[0] / (kept.n_rows * k) - 1
        dl0 = 2 * self.options.l0_coef * miss / (kept.n_rows * k)
        dtheta_K = -inside * (theta_K * dz_K + dl0)
        return self.options.l0_coef * miss.square(), dz_K * fires, kept.latent_sums(dtheta_K * theta_K)


def over_latents(kind: Architecture, spread: Whole) -> Architecture:
    """The same architecture with its latents spread. Raises UserError for one that is not supported."""
    if type(kind) in (BatchTopK, TopK):
        return kind
    if type(kind) is ReLU:
        return SpreadReLU(kind.options, spread)
    if type(kind) is JumpReLU:
        return SpreadJumpReLU(kind.options, spread)
    raise UserError(f"sae.architecture = '{type(kind).__name__.lower()}' is not supported on several ranks; take batchtopk, topk, jumprelu or relu")


def over_rows(kind: Architecture) -> Architecture:
    """The meta SAE's architecture with its rows spread. Raises UserError for one that is not supported."""
    if type(kind) in (BatchTopK, TopK):
        return kind
    raise UserError(f"meta.architecture = '{type(kind).__name__.lower()}' is not supported on several ranks; take batchtopk or topk")
