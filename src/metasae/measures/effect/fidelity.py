"""How well an SAE rebuilds the activations, and how often its latents fire.

FVU = sum (x - x_hat)^2 / sum (x - mean x)^2 over all evaluation tokens and dimensions; L2 = mean (x - x_hat)^2 per
number.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from metasae.data.split import Split
from metasae.measures.firing.firings import Firings, document_blocks
from metasae.progress.progress import SILENT, Progress, tracked
from metasae.sae.sae import SAE

DENSE_RATE = 0.1
RATE_QUANTILES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)


def rate_edges() -> np.ndarray:
    """Bin edges of log10 firing rate: 10 per decade from 1e-8 to 1."""
    return np.linspace(-8, 0, 81)


@dataclass(frozen=True)
class Moments:
    """Moments of the activations of a split, the same for every SAE. mean: float64 [d]; variance: (x - mean x)^2 summed
    over d, float64 [T].
    """

    mean: Tensor
    variance: np.ndarray


def moments_of(split: Split, batch: int = 4096) -> Moments:
    """Two passes over the activations; at least one token."""
    mean, n_tokens = 0.0, 0
    for block in split.blocks(batch):
        mean, n_tokens = mean + block.double().sum(0), n_tokens + len(block)
    mean = mean / n_tokens
    variance = [(block.double() - mean).square().sum(1).numpy() for block in split.blocks(batch)]
    return Moments(mean, np.concatenate(variance))


def measure_fidelity(
    sae: SAE,
    split: Split,
    firings: Firings,
    moments: Moments,
    batch: int = 4096,
    progress: Progress = SILENT,
) -> dict:
    """The part of `fidelity` in measures.json that needs no language model.

    fvu: None when the activations do not vary. l2: squared model units per number. l0: active latents per token. dead,
    dense: shares of the n latents that never fire and that fire on more than a tenth of the tokens. rates: of the
    latents that fire.
    leave_one_out: fvu, l2 and l0 without each block of documents in turn (`metasae.measures.firing.firings`), the
    variance still around the mean of all tokens.

    `split` is rebuilt from its firings: one pass over the activations, none through the encoder. firings: of this SAE
    on this split, at least one token. moments: of this split.
    """
    variance, d = moments.variance, len(moments.mean)
    errors, done = [], 0
    for block in tracked(progress, split.blocks(batch), "reconstruction error", firings.n_tokens):
        x = block.to(torch.float32)
        residual = x - decode_firings(sae, firings, done, x)
        errors.append(residual.double().square().sum(1).numpy())
        done += len(x)
    error = np.concatenate(errors)
    rates, total = firings.counts() / firings.n_tokens, float(variance.sum())
    return {
        "fvu": float(error.sum()) / total if total > 0 else None,
        "l2": float(error.sum()) / (len(error) * d),
        "l0": firings.l0,
        "dead": float(np.mean(rates == 0)),
        "dense": float(np.mean(rates > DENSE_RATE)),
        "rates": _distribution(rates[rates > 0]),
        "leave_one_out": _without_each_block(firings, error, variance, d),
    }


def _distribution(rates: np.ndarray) -> dict:
    """Quantiles, spread and histogram of firing rates. rates: float64 [l], of the latents that fire."""
    edges, some = rate_edges(), len(rates) > 0
    return {
        "quantiles_of_live": {f"{q:g}": float(np.quantile(rates, q)) if some else None for q in RATE_QUANTILES},
        "log10_spread": float(np.log10(rates).std()) if some else None,
        "histogram": {"log10_edges": edges, "counts": np.histogram(np.log10(rates), edges)[0]},
    }


def decode_firings(sae: SAE, firings: Firings, start: int, x: Tensor) -> Tensor:
    """The reconstruction x_hat [B, d], on the CPU, of the tokens start to start + B, whose activations are x [B, d].

    x is only used for the mean and standard deviation of an SAE that normalises per token.
    """
    pointers = firings.indptr[start : start + len(x) + 1]
    entries = slice(pointers[0], pointers[-1])
    weights = sae.W_dec.detach().float().cpu()
    x_hat = nn.functional.embedding_bag(
        torch.from_numpy(firings.indices[entries].astype(np.int64)),
        weights,
        torch.from_numpy(pointers - pointers[0]),
        mode="sum",
        # a copy, as firings may be mapped read-only
        per_sample_weights=torch.from_numpy(firings.values[entries].copy()),
        include_last_offset=True,
    )
    _, mean, std = sae.normalise(x)
    x_hat += sae.b_dec.detach().float().cpu()
    return x_hat if mean is None else x_hat * std + mean


def _without_each_block(
    firings: Firings, error: np.ndarray, variance: np.ndarray, d: int
) -> dict[str, list[float | None]]:
    """Per-token numbers, float64 [T] -> fvu, l2 and l0 of the tokens outside each block."""
    block = document_blocks(firings.documents)
    sums = {"error": error, "variance": variance, "l0": np.diff(firings.indptr), "tokens": np.ones(len(error))}
    left = {name: values.sum() - np.bincount(block, values) for name, values in sums.items()}
    if len(left["tokens"]) < 2:
        return {"fvu": [], "l2": [], "l0": []}
    fvu = [float(e / v) if v > 0 else None for e, v in zip(left["error"], left["variance"], strict=True)]
    return {
        "fvu": fvu,
        "l2": (left["error"] / (left["tokens"] * d)).tolist(),
        "l0": (left["l0"] / left["tokens"]).tolist(),
    }
