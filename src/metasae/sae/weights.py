"""The tensors of an SAE while it is trained."""

from dataclasses import dataclass

from torch import Tensor


@dataclass
class Weights:
    """The trained tensors. W_enc is stored as its transpose [n, d], so that a latent is a contiguous row of both
    matrices.

    log_threshold_N: only where the architecture learns its threshold.
    """

    W_enc_ND: Tensor
    W_dec_ND: Tensor
    b_dec_D: Tensor
    b_enc_N: Tensor | None = None
    log_threshold_N: Tensor | None = None

    def tensors(self) -> dict[str, Tensor]:
        """name -> tensor, of those that are not None."""
        return {name: tensor for name, tensor in vars(self).items() if tensor is not None}
