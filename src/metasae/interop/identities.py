"""The tensors of an SAE in one form, and the identities that convert other forms to it.

    z = relu(pre) * (pre > threshold),   pre = (x - b_dec) W_enc + b_enc,   x_hat = z W_dec + b_dec

Every function below changes the tensors but not the outputs, up to rounding: products are formed in float64 and rounded
to fp32 once. An entry nearer to its threshold than that rounding may fall on either side of it, as it may between two
machines.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from metasae.errors import UserError
from metasae.sae.sae import SAE, SAEConfig

# The beginning of every format's message where it refuses to write an SAE.
REFUSED = "this SAE cannot be written as"
# Latents whose float64 copies are made at once.
_COLUMNS = 4096


@dataclass(frozen=True)
class SAETensors:
    """W_enc [d, n], b_enc [n], W_dec [n, d], b_dec [d], threshold [n], all fp32."""

    W_enc: Tensor
    b_enc: Tensor
    W_dec: Tensor
    b_dec: Tensor
    threshold: Tensor


def tensors_of(sae: SAE) -> SAETensors:
    """The tensors of an SAE, in fp32 on the CPU. Raises UserError when it has no threshold yet."""
    if sae.threshold is None:
        raise UserError(
            "this SAE has no threshold yet, so no fixed rule of inference; calibrate it first (metasae measure)"
        )
    tensors = (sae.W_enc, sae.b_enc, sae.W_dec, sae.b_dec, sae.threshold)
    return SAETensors(*(tensor.detach().float().cpu() for tensor in tensors))


def assemble(tensors: SAETensors, config: SAEConfig, where: str) -> SAE:
    """The SAE of these tensors, which are copied. Raises UserError where a number has left the range of fp32."""
    for name, tensor in vars(tensors).items():
        if torch.isnan(tensor).any() or (name != "threshold" and torch.isinf(tensor).any()):
            raise UserError(f"{where}: its weights lead to a {name} beyond the range of fp32")
    sae = SAE(config)
    for name in ("W_enc", "b_enc", "W_dec", "b_dec"):
        getattr(sae, name).data.copy_(getattr(tensors, name))
    sae.threshold = tensors.threshold.clone()
    return sae


def centred(tensors: SAETensors, sign: float = 1.0) -> SAETensors:
    """From x W_enc + b_enc:   b_enc + b_dec W_enc, as x W_enc + b_enc = (x - b_dec) W_enc + (b_enc + b_dec W_enc).

    sign: -1 for the way back, for libraries that do not subtract b_dec from their input:   b_enc - b_dec W_enc.
    """
    b_dec = tensors.b_dec.double()
    shift = torch.cat([b_dec @ columns.double() for columns in tensors.W_enc.split(_COLUMNS, 1)])
    return replace(tensors, b_enc=(tensors.b_enc.double() + sign * shift).float())


def gated(tensors: SAETensors, r_mag: Tensor, b_gate: Tensor) -> SAETensors:
    """Gated (arXiv 2404.16014): fires where pi = x W_enc + b_gate > 0, with the value relu(e^r (x W_enc) + b_enc).

    With pre = e^r (x W_enc) + b_enc,   pi > 0   is   pre > b_enc - e^r b_gate,   as e^r > 0.
    """
    scale = r_mag.double().exp()
    threshold = (tensors.b_enc.double() - scale * b_gate.double()).float()
    return replace(tensors, W_enc=_times(tensors.W_enc, scale), threshold=threshold)


def norms_into_encoder(tensors: SAETensors, threshold: bool) -> SAETensors:
    """Decoder rows to unit length, activations times their norms.

    threshold: whether thresholds are scaled along with pre.
    """
    norm = torch.linalg.vector_norm(tensors.W_dec, dim=1, dtype=torch.float64)
    rows = tensors.W_dec / norm.where(norm > 0, 1.0).float()[:, None]
    thresholds = (tensors.threshold * norm).float().where(norm > 0, 0.0) if threshold else tensors.threshold
    W_enc, b_enc = _times(tensors.W_enc, norm), (tensors.b_enc * norm).float()
    return replace(tensors, W_enc=W_enc, b_enc=b_enc, W_dec=rows, threshold=thresholds)


def unscaled(tensors: SAETensors, scale: float) -> SAETensors:
    """From an SAE of scale * x:   W_enc * scale, W_dec / scale, b_dec / scale; its activations stay."""
    return replace(tensors, W_enc=tensors.W_enc * scale, W_dec=tensors.W_dec / scale, b_dec=tensors.b_dec / scale)


def has_unit_rows(tensors: SAETensors) -> bool:
    norm = torch.linalg.vector_norm(tensors.W_dec, dim=1)
    return torch.allclose(norm, torch.ones_like(norm))


def _times(W_enc: Tensor, scale_N: Tensor) -> Tensor:
    """Columns of W_enc [d, n] times scale float64 [n]."""
    blocks = zip(W_enc.split(_COLUMNS, 1), scale_N.split(_COLUMNS), strict=True)
    return torch.cat([(columns.double() * scale).float() for columns, scale in blocks], 1)
