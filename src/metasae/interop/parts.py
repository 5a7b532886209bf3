"""The tensors of an SAE in one form, and the identities that bring other forms to it.

    z = relu(pre) * (pre > threshold),   pre = (x - b_dec) W_enc + b_enc,   x_hat = z W_dec + b_dec

Every function below changes the tensors and not the outputs, but for rounding: products are formed in float64 and rounded to
fp32 once. An entry nearer to its threshold than that rounding may fall on either side of it, as it may between two machines.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from metasae.errors import UserError
from metasae.sae.sae import SAE, SAEConfig

# Latents whose float64 copies are made at once.
_COLUMNS = 4096


@dataclass(frozen=True)
class Parts:
    """W_enc [d, n], b_enc [n], W_dec [n, d], b_dec [d], threshold [n], all fp32."""

    W_enc: Tensor
    b_enc: Tensor
    W_dec: Tensor
    b_dec: Tensor
    threshold: Tensor


def parts_of(sae: SAE) -> Parts:
    """The tensors of an SAE, in fp32 on the CPU. Raises UserError when it has no threshold yet."""
    if sae.threshold is None:
        raise UserError(
            "this SAE has no threshold yet, so no fixed rule of inference; calibrate it first (metasae measure)"
        )
    tensors = (sae.W_enc, sae.b_enc, sae.W_dec, sae.b_dec, sae.threshold)
    return Parts(*(tensor.detach().float().cpu() for tensor in tensors))


def assemble(parts: Parts, config: SAEConfig, where: str) -> SAE:
    """The SAE of these tensors. Raises UserError where a number has left the range of fp32."""
    for name in ("W_enc", "b_enc", "W_dec", "b_dec", "threshold"):
        tensor = getattr(parts, name)
        if torch.isnan(tensor).any() or (name != "threshold" and torch.isinf(tensor).any()):
            raise UserError(f"{where}: its weights lead to a {name} beyond the range of fp32")
    sae = SAE(config)
    for name in ("W_enc", "b_enc", "W_dec", "b_dec"):
        getattr(sae, name).data.copy_(getattr(parts, name))
    sae.threshold = parts.threshold.clone()
    return sae


def centred(parts: Parts) -> Parts:
    """From x W_enc + b_enc:   b_enc + b_dec W_enc, as x W_enc + b_enc = (x - b_dec) W_enc + (b_enc + b_dec W_enc)."""
    return replace(parts, b_enc=_shifted(parts, 1.0))


def uncentred(parts: Parts) -> Parts:
    """The way back, for libraries that do not subtract b_dec from their input:   b_enc - b_dec W_enc."""
    return replace(parts, b_enc=_shifted(parts, -1.0))


def gated(parts: Parts, r_mag: Tensor, b_gate: Tensor, b_mag: Tensor) -> Parts:
    """Gated (arXiv 2404.16014): fires where pi = x W_enc + b_gate > 0, with the value relu(e^r (x W_enc) + b_mag).

    With pre = e^r (x W_enc) + b_mag,   pi > 0   is   pre > b_mag - e^r b_gate,   as e^r > 0.
    """
    scale = r_mag.double().exp()
    threshold = (b_mag.double() - scale * b_gate.double()).float()
    return replace(parts, W_enc=_times(parts.W_enc, scale), b_enc=b_mag, threshold=threshold)


def norms_into_encoder(parts: Parts, threshold: bool) -> Parts:
    """Decoder rows to unit length, activations times their norms. threshold: whether thresholds are scaled along with pre."""
    norm = torch.linalg.vector_norm(parts.W_dec, dim=1, dtype=torch.float64)
    rows = parts.W_dec / norm.where(norm > 0, 1.0).float()[:, None]
    out = replace(parts, W_enc=_times(parts.W_enc, norm), b_enc=(parts.b_enc * norm).float(), W_dec=rows)
    return replace(out, threshold=(parts.threshold * norm).float().where(norm > 0, 0.0)) if threshold else out


def unscaled(parts: Parts, scale: float) -> Parts:
    """From an SAE of scale * x:   W_enc * scale, W_dec / scale, b_dec / scale; its activations stay."""
    return replace(parts, W_enc=parts.W_enc * scale, W_dec=parts.W_dec / scale, b_dec=parts.b_dec / scale)


def has_unit_rows(parts: Parts) -> bool:
    norm = torch.linalg.vector_norm(parts.W_dec, dim=1)
    return torch.allclose(norm, torch.ones_like(norm))


def _times(W_enc: Tensor, scale_N: Tensor) -> Tensor:
    """Columns of W_enc [d, n] times scale float64 [n]."""
    return torch.cat(
        [
            (some.double() * scale).float()
            for some, scale in zip(W_enc.split(_COLUMNS, 1), scale_N.split(_COLUMNS), strict=True)
        ],
        1,
    )


def _shifted(parts: Parts, sign: float) -> Tensor:
    b_dec = parts.b_dec.double()
    shift = torch.cat([b_dec @ some.double() for some in parts.W_enc.split(_COLUMNS, 1)])
    return (parts.b_enc.double() + sign * shift).float()
