"""Whether a latent's decoder row can be built from others: nearest rows, and critics that were not trained against.

Source: arXiv 2502.04878 (meta SAEs), arXiv 2604.03436 (the penalty). A critic is trained afresh for every SAE, from the same
seed for all arms, and its score is read beside the score of the same critic on random unit rows.
"""

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor, nn

from metasae.errors import UserError
from metasae.measures.critic import Critic, judge, variance_explained
from metasae.progress import SILENT, Progress
from metasae.sae.kernels import fast

TILE = 1024
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
OWN_META_NOTE = "the run's own meta SAE; in the joint arm the rows were trained against it, so it is no independent critic"


@torch.no_grad()
def measure_decomposability(
    sae, meta_sae, live: np.ndarray, meta_n: float, meta_k: int, meta_steps: int, seed: int = 0, progress: Progress = SILENT
) -> dict:
    """The `decomposability` part of measures.json.

    live: bool [n], latents that fire on the evaluation tokens; only their rows are judged. meta_n: width of the critic as a
    share of all n latents. meta_k: critic latents kept per row on average. seed: of the critic, the same for every arm.
    meta_sae: the run's own, or None. Raises UserError when fewer than two latents are live.
    """
    rows = nn.functional.normalize(sae.W_dec.detach().float().cpu()[torch.from_numpy(live)], dim=1)
    if len(rows) < 2:
        raise UserError(f"{len(rows)} of {sae.n_latents} latents fire on the evaluation tokens; the SAE is not trained enough to be judged")
    nearest = nearest_cosines(rows)
    m = max(1, round(meta_n * sae.n_latents))
    with progress.task("critic", 2, "meta SAEs") as task:
        found = judge(rows, m, meta_k, meta_steps, seed)
        task.advance(1)
        floor = random_floor(len(rows), rows.shape[1], m, meta_k, meta_steps, seed)
        task.advance(1)
    return {
        "n_rows": len(rows),
        "nearest_cosine": float(nearest.mean()),
        "nearest_cosine_quantiles": {f"{q:g}": float(np.quantile(nearest.numpy(), q)) for q in QUANTILES},
        "encoder_decoder_cosine": encoder_decoder_cosine(sae, live),
        **critic_scores(found, floor),
        **(own_meta(sae, meta_sae) if meta_sae is not None else {}),
    }


def critic_scores(found: Critic, floor: Critic) -> dict:
    """meta_ve, its floor on random rows and the difference, on rows the critics were trained on and on rows they never saw."""
    return {
        "meta_ve": found.ve,
        "meta_ve_heldout": found.ve_heldout,
        "meta_ve_random": floor.ve,
        "meta_ve_random_heldout": floor.ve_heldout,
        "meta_ve_excess": _difference(found.ve, floor.ve),
        "meta_ve_heldout_excess": _difference(found.ve_heldout, floor.ve_heldout),
        "critic": {"m": found.m, "k": found.k, "steps": found.steps, "n_rows": found.n_rows, "n_heldout": found.n_heldout},
    }


def nearest_cosines(rows: Tensor) -> Tensor:
    """Unit rows [l, d], at least two -> max over j != i of cos(w_i, w_j), [l]. A tile of cosines at a time."""
    nearest = torch.empty(len(rows))
    for start in range(0, len(rows), TILE):
        cosines = rows[start : start + TILE] @ rows.t()
        own = torch.arange(len(cosines))
        cosines[own, start + own] = -torch.inf
        nearest[start : start + TILE] = cosines.max(dim=1).values
    return nearest


def encoder_decoder_cosine(sae, live: np.ndarray) -> float:
    """Mean over live latents of the cosine between encoder column and decoder row."""
    chosen = torch.from_numpy(live)
    columns, rows = sae.W_enc.detach().float().cpu().t()[chosen], sae.W_dec.detach().float().cpu()[chosen]
    return float(nn.functional.cosine_similarity(columns, rows, dim=1).mean())


@lru_cache(maxsize=64)
def random_floor(n_rows: int, d: int, m: int, k: int, steps: int, seed: int) -> Critic:
    """The same critic on random unit rows of the same shape: a critic explains some of those too, by copying."""
    generator = torch.Generator().manual_seed(seed + 1)
    return judge(nn.functional.normalize(torch.randn(n_rows, d, generator=generator), dim=1), m, k, steps, seed)


def own_meta(sae, meta_sae) -> dict:
    """What the penalty saw at the end: e = mean ||w_i - wh_i||^2 over all n rows by the run's own meta SAE, with BatchTopK over the rows."""
    rows = sae.W_dec.detach().to(meta_sae.W_dec)
    normalised, mean, std = meta_sae.normalise(rows)
    kept, _ = fast.select(meta_sae.pre_activations(normalised), meta_sae.config.k * len(rows))
    rebuilt = fast.decode(kept, meta_sae.W_dec) + meta_sae.b_dec
    rebuilt = rebuilt if mean is None else rebuilt * std + mean
    return {
        "own_meta_e": float((rows - rebuilt).square().sum(1).double().mean()),
        "own_meta_ve": variance_explained(rows, rebuilt),
        "own_meta_note": OWN_META_NOTE,
    }


def _difference(a: float | None, b: float | None) -> float | None:
    return None if a is None or b is None else a - b
