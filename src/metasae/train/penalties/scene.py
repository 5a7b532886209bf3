"""What a penalty may look at."""

from dataclasses import dataclass

from torch import Tensor

from metasae.sae.kernels.kept import Kept


@dataclass(frozen=True)
class Scene:
    """W_dec_ND: decoder rows of unit length. kept: this batch's firings. rate_N: running firing rate per token, fp32 [n].

    step: primary steps done; seed: the arm's seed. With both, a penalty that draws at random stays repeatable and resumable.
    """

    W_dec_ND: Tensor
    kept: Kept
    rate_N: Tensor
    step: int
    seed: int
