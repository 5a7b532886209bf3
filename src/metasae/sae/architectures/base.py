"""The methods of an architecture. The defaults are those of BatchTopK, the simplest."""

from dataclasses import dataclass
from types import ModuleType

import torch
from torch import Tensor

from metasae.sae.kernels.kept import Kept
from metasae.sae.spread import WHOLE, Whole
from metasae.sae.weights import Weights


@dataclass(frozen=True)
class Options:
    """Numbers an architecture may need. k: latents per token asked for.

    l1: weight of ReLU's sum of activations. l0_coef, bandwidth, threshold: JumpReLU's L0 term, its pseudo-derivative's
    width and its first threshold. prefixes: Matryoshka's nested prefixes, as shares of n. l0: for ReLU and JumpReLU,
    "k" where training adjusts L0 to k, "free" where the weights of their loss terms alone decide it.
    """

    k: int
    l1: float = 0.0
    l0_coef: float = 0.0
    bandwidth: float = 0.05
    threshold: float = 0.05
    prefixes: tuple[float, ...] = (1.0,)
    l0: str = "k"


class Architecture:
    """What training calls of an architecture. Subclasses override what differs from BatchTopK.

    spread: how the latents lie over processes (`metasae.sae.spread`). An architecture that sums over latents with
    `spread.over_latents` is right on several ranks; the kernels' selections already run over all ranks.
    """

    # whether inference uses the rule of training; if not, thresholds are calibrated after training
    own_threshold = False
    # whether `select` keeps the k * B largest entries of the batch, and pre is not needed otherwise
    over_batch = False
    # whether a meta SAE of this kind can be trained on rows that lie on several ranks: its sparsity must come from the
    # kernels' selection alone
    rows_over_ranks = False
    # whether `begin` and `steer` adjust L0 to k, and whether that needs an encoder bias
    follows = False
    needs_bias = False

    def __init__(self, options: Options, spread: Whole = WHOLE):
        self.options, self.spread = options, spread

    def threshold_init(self) -> float | None:
        """Log of the first value of the learned thresholds; None for architectures without."""
        return None

    def begin(self, pre_BN: Tensor, weights: Weights) -> None:
        """Sets biases or thresholds by the first batch, where the architecture `follows`. pre: before selection."""

    def steer(self, l0: Tensor, weights: Weights) -> None:
        """Called after every step where the architecture `follows`. l0: of its batch, over all latents, 0-dim."""

    def numbers(self) -> dict[str, float]:
        """The state beside the weights, for a checkpoint."""
        return {}

    def load(self, numbers: dict[str, float], device: torch.device) -> None:
        """Restores the state that `numbers` returned."""

    def ends(self, n: int) -> tuple[int, ...]:
        """Ends of the nested prefixes of latents that each rebuild the input; (n,) for all but Matryoshka."""
        return (n,)

    def select(self, pre_BN: Tensor, weights: Weights, k: int, cut: float, kernels: ModuleType) -> tuple[Kept, float]:
        """The entries that fire, and the warm cut of the next call. k: latents per token in this step."""
        return Kept.where(pre_BN, self.fires(pre_BN, k)), cut

    def fires(self, pre_BN: Tensor, k: int) -> Tensor:
        """Bool [B, n]: which entries of pre fire. An architecture needs this method or a faster `select`."""
        raise NotImplementedError

    def sparsity(
        self, pre_K: Tensor, kept: Kept, dz_K: Tensor, weights: Weights
    ) -> tuple[Tensor | None, Tensor, Tensor | None]:
        """(sparsity loss or None, dL/dpre [K], dL/dlog_threshold [n] or None), given dz = d(reconstruction)/dz [K]."""
        return None, dz_K, None

    def inference_threshold(self, weights: Weights) -> Tensor | None:
        """[n], in the units of pre, where `own_threshold`."""
        return None
