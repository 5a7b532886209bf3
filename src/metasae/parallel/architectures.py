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
    """JumpReLU, the L0 in its L0 term that of all latents."""

    def __init__(self, options, spread: Whole):
        super().__init__(options)
        self.spread = spread

    def n_firings(self, fires_K):
        return self.spread.over_latents(fires_K.sum().reshape(1))[0]


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
