"""An existing SAE as the start of a training (`train.init`), in the units and the form that training has.

The SAE reads x in the model's units; training reads s x, s the input scale, and its decoder rows have unit length. With
c_j = ||w_j|| the same reconstruction, times s, comes from

    W_dec_j / c_j,   W_enc_j c_j,   s c_j b_enc_j,   s c_j theta_j,   s b_dec          activations are s c_j z_j

so latent j stays latent j. A row of zeros stays as it is.
"""

import torch

from metasae.sae.sae import SAE
from metasae.sae.weights import Weights


@torch.no_grad()
def start_from(sae: SAE, scale: float) -> Weights:
    """fp32 weights whose reconstruction of scale * x is scale * sae(x) at the SAE's own thresholds.

    scale: 1 where each token is normalised. b_enc_N is None where the SAE has no encoder bias. log_threshold_N: -inf
    for a threshold of 0 or below, None where the SAE has no threshold above 0.
    """
    W_dec, W_enc = sae.W_dec.float(), sae.W_enc.t().float()
    norms = torch.linalg.vector_norm(W_dec, dim=1)
    norms = torch.where(norms > 0, norms, 1.0)
    b_enc = sae.b_enc.float() * norms * scale
    threshold = torch.zeros_like(norms) if sae.threshold is None else sae.threshold.float() * norms * scale
    return Weights(
        (W_enc * norms[:, None]).contiguous(),
        (W_dec / norms[:, None]).contiguous(),
        sae.b_dec.float() * scale,
        b_enc if b_enc.any() else None,
        threshold.clamp(min=0).log() if (threshold > 0).any() else None,
    )
