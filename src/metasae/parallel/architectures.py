"""The architectures that need to know of all latents, where the latents are spread over ranks.

BatchTopK and TopK do not: their selection is made over all ranks by the kernels. ReLU and JumpReLU have a term that is a sum over all
latents. Matryoshka's prefixes are of all latents, and a rank holds a stretch of each, which may be empty.
"""

from metasae.errors import UserError
from metasae.sae.architectures.base import Architecture
from metasae.sae.architectures.batchtopk import BatchTopK
from metasae.sae.architectures.jumprelu import JumpReLU
from metasae.sae.architectures.matryoshka import Matryoshka
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


class SpreadMatryoshka(Matryoshka):
    """Matryoshka, its prefixes those of all latents, cut to the latents here.

    Every prefix stays, also where none of its own latents are here: all ranks take part in the sum of each reconstruction.
    """

    def __init__(self, options, spread: Whole):
        super().__init__(options)
        self.spread = spread

    def ends(self, n):
        start = self.spread.latents(n).start
        return tuple(min(max(end - start, 0), n) for end in super().ends(self.spread.n_latents(n)))


def over_latents(kind: Architecture, spread: Whole) -> Architecture:
    """The same architecture with its latents spread. Raises UserError for one that is not supported."""
    if type(kind) in (BatchTopK, TopK):
        return kind
    if type(kind) is ReLU:
        return SpreadReLU(kind.options, spread)
    if type(kind) is JumpReLU:
        return SpreadJumpReLU(kind.options, spread)
    if type(kind) is Matryoshka:
        return SpreadMatryoshka(kind.options, spread)
    raise UserError(
        f"sae.architecture = '{type(kind).__name__.lower()}' is not supported on several ranks; take batchtopk, topk, jumprelu, relu or matryoshka"
    )


def over_rows(kind: Architecture) -> Architecture:
    """The meta SAE's architecture with its rows spread. Raises UserError for one that is not supported."""
    if type(kind) in (BatchTopK, TopK):
        return kind
    raise UserError(f"meta.architecture = '{type(kind).__name__.lower()}' is not supported on several ranks; take batchtopk or topk")
