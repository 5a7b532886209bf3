"""A critic: a fresh BatchTopK meta SAE that judges decoder rows and takes no part in their training.

Its score is read beside its scores on two kinds of rows without shared parts (the floors). Random unit rows: copying m
of n rows explains some of any rows. Gaussian rows with the mean and covariance of the judged ones: a few wide
directions are easy to explain too. What is above the second is structure beyond the covariance: directions that rows
share in small sets.

A score depends on the critic's own seed: on which fifth of the rows is held out, where the critic starts, and how the
Gaussian rows are drawn. So several critics judge, of the seeds 0, 1, 2 ..., the same for every SAE; the score is their
mean, and their spread is a part of its interval (`metasae.intervals.statistics`). The random floor is that of the first
seed: it varies by less than half as much, and is the same for all SAEs of a shape, so it cancels between two SAEs.
"""

import math
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import product
from statistics import fmean

import torch
from torch import Tensor, nn

from metasae.progress.progress import SILENT, Progress, Task, tracked
from metasae.ranks.lanes import is_small, side_by_side
from metasae.sae.architectures import Options
from metasae.sae.architectures.batchtopk import BatchTopK
from metasae.sae.gradients import Arithmetic, Auxiliary, forward, matmul_dtype, sae_gradients
from metasae.sae.kernels import fast
from metasae.sae.optimiser import UnitRowAdam, learning_rate
from metasae.sae.weights import Weights

AUX_SHARE = 1 / 32
GAUSSIAN_TURNS = 6
# The share of rows that a critic never sees.
HELDOUT = 0.2
LR = 1e-2


@dataclass(frozen=True)
class Critic:
    """ve: variance explained on the rows it was trained on; ve_heldout: on rows it never saw (None when there are
    none)."""

    ve: float | None
    ve_heldout: float | None


@torch.no_grad()
def judge(rows: Tensor, m: int, k: int, steps: int, seed: int, dtype: str = "auto") -> Critic:
    """Trains a fresh meta SAE on 80% of the rows [R, d] and scores it on them and on the rest.

    m latents, k kept per row on average, `steps` Adam steps on all training rows at once, learning rate falling
    linearly to 0 over the second half. Latents that fire on no row are revived by a term that makes them explain the
    residual (AuxK, arXiv 2406.04093). Everything random comes from `seed`. dtype: of the products of its training, as
    `train.dtype`; scores are worked out in fp32. Method: arXiv 2502.04878.
    """
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(rows), generator=generator)
    n_heldout = int(HELDOUT * len(rows))
    unseen, training = rows[order[:n_heldout]], rows[order[n_heldout:]]
    weights = _initial(training, m, generator)
    _fit(weights, training, k, steps, matmul_dtype(dtype, rows.device))
    return Critic(_score(weights, training, k), _score(weights, unseen, k))


def variance_explained(rows: Tensor, rebuilt: Tensor) -> float | None:
    """1 - sum ||w - w_hat||^2 / sum ||w - mean w||^2 over rows [R, d]; None when the rows do not vary."""
    total = float((rows - rows.mean(0)).double().square().sum())
    return 1 - float((rows - rebuilt).double().square().sum()) / total if total > 0 else None


@lru_cache(maxsize=64)
def random_floor(n_rows: int, d: int, m: int, k: int, steps: int, seed: int, dtype: str = "auto") -> Critic:
    """The same critic on random unit rows of the same shape: a critic explains some of those too, by copying."""
    return judge(random_rows(n_rows, d, seed + 1), m, k, steps, seed, dtype)


def random_floor_at(n_rows: int, d: int, m: int, k: int, steps: int, seed: int, dtype: str = "auto") -> Critic:
    """`random_floor`, for counts of rows on a grid of 16 to 32 per octave; between two of them linear in the count.
    SAEs differ in how many of their latents are live, and a floor takes as long as a critic. With the grid all SAEs of
    a run or a sweep share one or two floors. The floor is about proportional to m / R, so interpolation is off by some
    1e-4, as much as one draw of random rows differs from the next.
    """
    step = 1 << max(0, n_rows.bit_length() - 5)
    below = n_rows - n_rows % step
    low = random_floor(below, d, m, k, steps, seed, dtype)
    if below == n_rows:
        return low
    high, share = random_floor(below + step, d, m, k, steps, seed, dtype), (n_rows - below) / step
    return Critic(_between(low.ve, high.ve, share), _between(low.ve_heldout, high.ve_heldout, share))


def _between(low: float | None, high: float | None, share: float) -> float | None:
    return None if low is None or high is None else (1 - share) * low + share * high


def random_rows(n: int, d: int, seed: int) -> Tensor:
    """Unit rows [n, d], every direction alike."""
    return nn.functional.normalize(torch.randn(n, d, generator=torch.Generator().manual_seed(seed)), dim=1)


@torch.no_grad()
def gaussian_rows(rows: Tensor, seed: int) -> Tensor:
    """Gaussian rows made to unit length, with the mean and covariance that unit rows [R, d] have: [R, d].

    rows - mean = U S V^T; U is replaced by random orthonormal columns at right angles to the mean's. So mean and
    covariance are exactly those of the sample, and Gaussian rows keep their distribution; a draw from the estimated
    covariance would have a wider spectrum than the rows. Making rows unit length changes the covariance, so the two are
    corrected in turn until they agree (to about 1e-3; only to about a third for R <= d, where there are few rows).
    """
    rows = rows.double()
    mean = rows.mean(0)
    # V and S^2; where there is no spread, rounding leaves tiny values
    squares, directions = torch.linalg.eigh((rows - mean).t() @ (rows - mean))
    kept = squares > 1e-12 * squares[-1]
    spread, directions = squares[kept].sqrt(), directions[:, kept]
    drawn = torch.randn(len(rows), len(spread), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    for turn in range(GAUSSIAN_TURNS):
        centred = drawn - drawn.mean(0)
        columns, triangle = torch.linalg.qr(centred if turn == 0 else centred @ directions)
        # QR leaves signs open; flipped columns would be a new draw
        columns = columns * triangle.diagonal().sign()
        drawn = nn.functional.normalize(mean + columns * spread @ directions.t(), dim=1)
    return drawn.float()


def judge_beside_floors(
    rows: Tensor,
    m: int,
    k: int,
    steps: int,
    seeds: Sequence[int],
    dtype: str = "auto",
    gaussian: Sequence[Tensor] | None = None,
    task: Task | None = None,
) -> list[dict[str, float | None]]:
    """`judge` of rows [R, d] and of both kinds of rows without parts, by a critic of each seed; the random ones by that
    of the first seed alone.

    ve, ve_heldout: variance explained on rows that the critic was trained on and on rows it never saw (None without
    any), of the rows, of random unit rows and of Gaussian ones (`_random`, `_gaussian`), and above both floors
    (`_excess`, `_excess_over_gaussian`). gaussian: `gaussian_rows(rows, seed + 2)` of each seed, where they exist
    already. task: moves on by `n_trained(len(seeds))` meta SAEs.
    """
    n_rows, d = rows.shape
    size = (m, k, steps)

    def of_gaussian(place: int) -> Critic:
        drawn = gaussian_rows(rows, seeds[place] + 2) if gaussian is None else gaussian[place]
        return judge(drawn, *size, seeds[place], dtype)

    works = [partial(random_floor_at, n_rows, d, *size, seeds[0], dtype)]
    works += [partial(judge, rows, *size, seed, dtype) for seed in seeds]
    works += [partial(of_gaussian, place) for place in range(len(seeds))]
    moving = threading.Lock()

    def done(work: Callable[[], Critic]) -> Critic:
        critic = work()
        with moving:
            if task is not None:
                task.advance(1)
        return critic

    random, *others = side_by_side(done, works) if is_small(n_rows * d * m) else list(map(done, works))
    own, of_gaussians = others[: len(seeds)], others[len(seeds) :]
    return [_scores(critic, random, floor) for critic, floor in zip(own, of_gaussians, strict=True)]


def n_trained(critics: int) -> int:
    """The number of meta SAEs that are trained for this many critics, counting the random floor as one."""
    return 2 * critics + 1


def _scores(own: Critic, random: Critic, gaussian: Critic) -> dict[str, float | None]:
    return {
        "ve": own.ve,
        "ve_excess": _difference(own.ve, random.ve),
        "ve_excess_over_gaussian": _difference(own.ve, gaussian.ve),
        "ve_heldout": own.ve_heldout,
        "ve_heldout_excess": _difference(own.ve_heldout, random.ve_heldout),
        "ve_heldout_excess_over_gaussian": _difference(own.ve_heldout, gaussian.ve_heldout),
        "ve_random": random.ve,
        "ve_random_heldout": random.ve_heldout,
        "ve_gaussian": gaussian.ve,
        "ve_gaussian_heldout": gaussian.ve_heldout,
    }


def by_score(critics: Sequence[dict[str, float | None]]) -> dict[str, list[float | None]]:
    """Score -> its values, in the order of the critics that `judge_beside_floors` gave."""
    return {name: [critic[name] for critic in critics] for name in critics[0]}


def mean_scores(critics: Sequence[dict[str, float | None]]) -> dict[str, float | None]:
    """The mean of each score over the critics; None where one of them has none."""
    return {name: None if None in values else fmean(values) for name, values in by_score(critics).items()}


def critic_grid(
    rows: Tensor,
    n: int,
    widths: Sequence[float],
    ks: Sequence[int],
    steps: int,
    seed: int,
    progress: Progress = SILENT,
    dtype: str = "auto",
) -> list[dict]:
    """`judge_beside_floors` of rows [R, d] for every width and k, by one critic each: {"width", "m", "k", ...scores}.

    widths: shares of n, so that all arms get the same m, however many of their rows are judged.
    """
    gaussian, table, sizes = gaussian_rows(rows, seed + 2), [], list(product(widths, ks))
    for width, k in tracked(progress, sizes, "critics of several sizes", len(sizes), "critics", size=lambda _: 1):
        m = max(1, round(width * n))
        (scores,) = judge_beside_floors(rows, m, k, steps, (seed,), dtype, (gaussian,))
        table.append({"width": width, "m": m, "k": k, **scores})
    return table


def _difference(a: float | None, b: float | None) -> float | None:
    return None if a is None or b is None else a - b


def _initial(rows: Tensor, m: int, generator: torch.Generator) -> Weights:
    """Starting weights: the rows themselves are good starting directions; where there are fewer than m, the rest are
    random.
    """
    bias = rows.mean(0)
    chosen = torch.randperm(len(rows), generator=generator)[:m]
    directions = torch.randn(m, rows.shape[1], generator=generator)
    directions[: len(chosen)] = rows[chosen] - bias
    directions = nn.functional.normalize(directions, dim=1)
    return Weights(directions.clone(), directions, bias, torch.zeros(m))


def _fit(weights: Weights, rows: Tensor, k: int, steps: int, dtype: torch.dtype) -> None:
    how = Arithmetic(fast, dtype)
    # the loss is a mean over all numbers, so its gradients are far smaller than Adam's usual eps
    adam = UnitRowAdam(weights, betas=(0.9, 0.999), eps=1e-15, clip=math.inf, renormalise="after")
    architecture, cut = BatchTopK(Options(k)), 0.0
    for step in range(steps):
        codes = forward(rows, weights, architecture, k, cut, how)
        cut = codes.cut
        dead = Auxiliary(~codes.kept.fired(), k, AUX_SHARE, detach=True)
        gradients = sae_gradients(codes, weights, architecture, dead, how).weights
        adam.step(gradients, learning_rate(step, steps, LR, warmup=0, decay=0.5))


def _score(weights: Weights, rows: Tensor, k: int) -> float | None:
    if not len(rows):
        return None
    codes = forward(rows, weights, BatchTopK(Options(k)), k, 0.0, Arithmetic(fast, torch.float32))
    return variance_explained(rows, rows - codes.residuals[-1])
