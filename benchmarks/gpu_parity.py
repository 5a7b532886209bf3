"""The Triton kernels against plain torch's on this device, at full size."""

from dataclasses import replace

import torch
from gpu_engines import DEAD, trainer_for
from step import Shape

from metasae.sae.kernels import fast, kernels, reference


def parity(shape: Shape, device: torch.device, batches: list[torch.Tensor]) -> list[tuple[str, float, float]]:
    """(kernel, how far it is from plain torch's on this device, the most it may be) at full size, relative to the
    largest number."""
    triton = kernels("triton")
    weights = trainer_for(shape, "bf16", "fast", device, "solo").primary.weights
    x, keep = batches[0], shape.k * batches[0].shape[0]
    out = []

    def compare(name: str, ours: torch.Tensor, wanted: torch.Tensor, limit: float = 1e-4) -> None:
        out.append((name, float((ours.float() - wanted.float()).abs().max() / wanted.float().abs().max()), limit))

    from metasae.sae.kernels.triton.encoding import encode_tiles

    pre = encode_tiles(x, weights.W_enc_ND, None, torch.bfloat16)
    compare("encode by tiles", pre, fast.encode(x, weights.W_enc_ND, None, torch.bfloat16), 2e-2)
    kept, _ = fast.select(pre, keep)
    for name, (mine, _) in {
        "select": triton.select(pre, keep),
        "encode_select": triton.encode_select(x, weights.W_enc_ND, None, keep, 0.0, torch.bfloat16),
    }.items():
        same = all(
            torch.equal(getattr(mine, part), getattr(kept, part)) for part in ("rows", "latents", "values", "offsets")
        )
        out.append((f"{name}: entries", 0.0 if same else 1.0, 0.0))
    r, squares, dots = triton.residual(kept, weights.W_dec_ND, x)
    wanted = x - fast.decode(kept, weights.W_dec_ND)
    plain_dots = fast.entry_dots(kept, wanted, weights.W_dec_ND)
    compare("decode", x - triton.decode(kept, weights.W_dec_ND), wanted)
    compare("residual", r, wanted)
    compare("residual: squares", squares, wanted.square().sum(1))
    compare("residual: dots", dots, plain_dots)
    compare("entry_dots", triton.entry_dots(kept, wanted, weights.W_dec_ND), plain_dots)
    given = (kept, (kept.values, plain_dots), (wanted, x))
    once, again, plain = triton.latent_rows(*given), triton.latent_rows(*given), fast.latent_rows(*given)
    for name, one, two, other in zip(("W_dec", "W_enc"), once, again, plain, strict=True):
        compare(f"latent_rows: {name}", one, other)
        out.append((f"latent_rows: {name} twice the same", float(not torch.equal(one, two)), 0.0))
    some = pre[:, : max(8, int(DEAD * shape.n))]
    out.append(
        (
            "keep_rows",
            float(not torch.equal(triton.keep_rows(some, shape.d // 2), reference.keep_rows(some, shape.d // 2))),
            0.0,
        )
    )
    out += _parity_of_steps(shape, device, batches)
    return out


def _parity_of_steps(shape: Shape, device: torch.device, batches: list[torch.Tensor]) -> list[tuple[str, float, float]]:
    """Both optimisers on the same gradients; the penalty of both; a few steps of both trainers."""
    one, other = (trainer_for(shape, "fp32", name, device) for name in ("fast", "triton"))
    gradients = one.primary_gradients(batches[0])[2]
    copies = [
        replace(gradients, **{name: value.clone() for name, value in gradients.tensors().items()}) for _ in range(2)
    ]
    start = one.primary.weights.W_dec_ND.clone()
    for trainer, mine in zip((one, other), copies, strict=True):
        trainer.primary.optimiser.step(mine, 1e-3)
    moved = (one.primary.weights.W_dec_ND - start).abs().max()
    apart = (one.primary.weights.W_dec_ND - other.primary.weights.W_dec_ND).abs().max()
    out = [("RowAdam: what rows moved by", float(apart / moved), 1e-2)]
    values = [trainer._decomposability(torch.zeros_like(start)) for trainer in (one, other)]
    out.append(("penalty", float((values[0][0] - values[1][0]).abs() / values[0][0].clamp(min=1e-12)), 1e-3))
    losses = [[float(trainer.primary_step(batch)[0].total) for batch in batches[:3]] for trainer in (one, other)]
    out.append(("three steps' losses", max(abs(a - b) / abs(a) for a, b in zip(*losses, strict=True)), 1e-3))
    return out
