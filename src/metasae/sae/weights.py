"""The tensors of an SAE while it is trained."""

from dataclasses import dataclass

from torch import Tensor


@dataclass
class Weights:
    """The trained tensors. W_enc is held as its transpose [n, d]: a latent is one contiguous row in both matrices.

    log_threshold_N: only where the architecture learns its threshold.
    """

    W_enc_ND: Tensor
    W_dec_ND: Tensor
    b_dec_D: Tensor
    b_enc_N: Tensor | None = None
    log_threshold_N: Tensor | None = None

    def tensors(self) -> dict[str, Tensor]:
        """name -> tensor, without the absent ones."""
        return {name: tensor for name, tensor in vars(self).items() if tensor is not None}
