"""Whether a latent's decoder row can be built from others: the nearest row, a few other rows, and critics against which
the SAE was not trained.

Source: arXiv 2502.04878 (meta SAEs), arXiv 2604.03436 (the penalty). Critics are trained afresh for every SAE, from the
same seeds for all arms, and their mean score is read beside the scores of the same critic on rows without parts; see
`critic.py`, `pursuit.py`.
"""

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor, nn

from metasae.errors import UserError
from metasae.measures.firing.selection import batch_topk_reconstruction
from metasae.measures.rows.critic import (
    HELDOUT,
    by_score,
    critic_grid,
    gaussian_rows,
    judge_beside_floors,
    mean_scores,
    n_trained,
    random_rows,
    variance_explained,
)
from metasae.measures.rows.pursuit import Pursuit, pursue
from metasae.progress.progress import SILENT, Progress
from metasae.sae.gradients import matmul_dtype
from metasae.sae.sae import SAE

TILE = 1024
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
GRID_WIDTHS = (0.045, 0.09, 0.25)
GRID_KS = (1, 2, 4, 8)
# the e of rows without parts hardly varies, so its mean over this many rows is enough
FLOOR_TARGETS = 512
MOST_DECOMPOSABLE = 20


@torch.no_grad()
def measure_decomposability(
    sae: SAE,
    meta_sae: SAE | None,
    live: np.ndarray,
    meta_n: float,
    meta_k: int,
    meta_steps: int,
    seed: int = 0,
    progress: Progress = SILENT,
    *,
    critics: int = 5,
    dtype: str = "auto",
    grid: bool = False,
    parts: int = 0,
) -> dict:
    """The `decomposability` part of measures.json.

    live: bool [n], latents that fire on the evaluation tokens; only their rows are judged. meta_n: width of a critic as
    a share of all n latents. meta_k: critic latents kept per row on average. meta_sae: the run's own, or None. critics:
    how many judge, of the seeds from `seed` on, the same for every arm. Scores are their means; `critics` has those of
    each one. dtype: of the critics' products, as `train.dtype`. grid: critics of the widths 4.5%, 9%, 25% with 1, 2, 4,
    8 latents per row, one each, as `critic_grid`. parts: above 0, the pursuit with up to this many parts, as `pursuit`.
    Raises UserError when fewer than two latents are live or a live latent's decoder row is zero or not finite.
    """
    rows = _live_rows(sae, live)
    nearest, aligned = nearest_cosines(rows), encoder_decoder_cosines(sae, live)
    m = max(1, round(meta_n * sae.n_latents))
    seeds = range(seed, seed + critics)
    with progress.task("rebuilding decoder rows by critics", n_trained(critics), "meta SAEs") as task:
        judged = judge_beside_floors(rows, m, meta_k, meta_steps, seeds, dtype, task=task)
    n_heldout = int(HELDOUT * len(rows))
    critic = {"m": m, "k": meta_k, "steps": meta_steps, "n_rows": len(rows) - n_heldout, "n_heldout": n_heldout}
    critic |= {"seeds": list(seeds), "dtype": str(matmul_dtype(dtype, rows.device)).removeprefix("torch.")}
    table = {
        "n_rows": len(rows),
        "nearest_cosine": float(nearest.mean()),
        "nearest_cosine_quantiles": _quantiles(nearest.numpy()),
        "encoder_decoder_cosine": float(aligned.mean()),
        "encoder_decoder_cosine_quantiles": _quantiles(aligned),
        **{f"meta_{name}": value for name, value in mean_scores(judged).items()},
        "critic": critic,
        "critics": {f"meta_{name}": values for name, values in by_score(judged).items()},
    }
    if meta_sae is not None:
        table |= own_meta(sae, meta_sae)
    if grid:
        size = (sae.n_latents, GRID_WIDTHS, GRID_KS, meta_steps, seed)
        table["critic_grid"] = critic_grid(rows, *size, progress, dtype)
    if parts:
        table["pursuit"] = pursuit_beside_floors(rows, np.flatnonzero(live), parts, seed, progress)
    return table


def _live_rows(sae: SAE, live: np.ndarray) -> Tensor:
    """The decoder rows of the live latents, to unit length [l, d]."""
    latents = np.flatnonzero(live)
    rows = sae.W_dec.detach().float().cpu()[torch.from_numpy(latents)]
    if len(rows) < 2:
        raise UserError(
            f"{len(rows)} of {sae.n_latents} latents fire on the evaluation tokens; "
            "the SAE is not trained enough to be judged"
        )
    lengths = rows.norm(dim=1)
    bad = latents[~(torch.isfinite(lengths) & (lengths > 0)).numpy()]
    if len(bad):
        raise UserError(
            f"the decoder row of latent {bad[0]} is zero or not finite though it fires; prune such latents first"
        )
    return nn.functional.normalize(rows, dim=1)


def pursuit_beside_floors(rows: Tensor, latents: np.ndarray, most: int, seed: int, progress: Progress = SILENT) -> dict:
    """e(k) of unit rows [l, d] and of rows without parts: random (`_random`) and Gaussian of the same covariance
    (`_gaussian`).

    excess: floor minus e, so what is explained beyond the floor. The floors are means over FLOOR_TARGETS rows of as
    many as there are.
    most_decomposable: the latents with the lowest e(most), named by `latents` [l], and their parts.
    """
    pursuit, n_rows = pursue(rows, most, progress=progress), len(rows)
    random_floor = _random_pursuit(n_rows, rows.shape[1], most, seed + 1)
    gaussian_floor = pursue(gaussian_rows(rows, seed + 2), most, np.arange(min(n_rows, FLOOR_TARGETS))).errors.mean(0)
    table = pursuit.as_dict()
    for k in range(most):
        e, random, gaussian = float(pursuit.errors[:, k].mean()), float(random_floor[k]), float(gaussian_floor[k])
        table |= {f"e_{k + 1}_random": random, f"e_{k + 1}_gaussian": gaussian}
        table |= {f"e_{k + 1}_excess": random - e, f"e_{k + 1}_excess_over_gaussian": gaussian - e}
    return {**table, "most_decomposable": most_decomposable(pursuit, latents, MOST_DECOMPOSABLE)}


@lru_cache(maxsize=16)
def _random_pursuit(n_rows: int, d: int, most: int, seed: int) -> np.ndarray:
    """Mean e(1) ... e(most) of random rows, float64 [most]: the same for all SAEs of a run with as many live
    latents."""
    return pursue(random_rows(n_rows, d, seed), most, np.arange(min(n_rows, FLOOR_TARGETS))).errors.mean(0)


def most_decomposable(pursuit: Pursuit, latents: np.ndarray, count: int) -> list[dict]:
    """The targets with the lowest e(K), lowest first: {"latent", "e", "parts": [{"latent", "coefficient"}]}.

    latents: [n], of the rows.
    """
    return [
        {
            "latent": int(latents[pursuit.targets[i]]),
            "e": float(pursuit.errors[i, -1]),
            "parts": [
                {"latent": int(latents[part]), "coefficient": float(c)}
                for part, c in zip(pursuit.parts[i, -1], pursuit.coefficients[i, -1], strict=True)
                if part >= 0
            ],
        }
        for i in pursuit.errors[:, -1].argsort(kind="stable")[:count]
    ]


def nearest_cosines(rows: Tensor) -> Tensor:
    """Unit rows [l, d], at least two -> max over j != i of cos(w_i, w_j), [l]. A tile of cosines at a time."""
    nearest = torch.empty(len(rows))
    for start in range(0, len(rows), TILE):
        cosines = rows[start : start + TILE] @ rows.t()
        own = torch.arange(len(cosines))
        cosines[own, start + own] = -torch.inf
        nearest[start : start + TILE] = cosines.max(dim=1).values
    return nearest


def encoder_decoder_cosines(sae: SAE, live: np.ndarray) -> np.ndarray:
    """Cosine of encoder column and decoder row of each live latent, float64 [l]."""
    chosen = torch.from_numpy(live)
    columns, rows = sae.W_enc.detach().float().cpu().t()[chosen], sae.W_dec.detach().float().cpu()[chosen]
    return nn.functional.cosine_similarity(columns, rows, dim=1).double().numpy()


def _quantiles(values: np.ndarray) -> dict[str, float]:
    return {f"{q:g}": float(np.quantile(values, q)) for q in QUANTILES}


def own_meta(sae: SAE, meta_sae: SAE) -> dict:
    """The error that the penalty saw at the end: e = mean ||w_i - wh_i||^2 over all n rows by the run's own meta SAE.

    The meta SAE keeps the largest pre-activations of all rows together, as in training.
    """
    rows = sae.W_dec.detach().to(meta_sae.W_dec)
    rebuilt = batch_topk_reconstruction(meta_sae, rows)
    return {
        "own_meta_e": float((rows - rebuilt).square().sum(1).double().mean()),
        "own_meta_ve": variance_explained(rows, rebuilt),
        "own_meta_note": "the run's own meta SAE; "
        "in the joint arm the rows were trained against it, so it is no independent critic",
    }
