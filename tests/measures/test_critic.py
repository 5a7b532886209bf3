import pytest
import torch
from torch import nn

from metasae.device import multiplies_bf16
from metasae.measures.rows.critic import (
    by_score,
    critic_grid,
    gaussian_rows,
    judge,
    judge_beside_floors,
    mean_scores,
    n_trained,
    random_floor,
    random_floor_at,
    random_rows,
    variance_explained,
)
from metasae.progress.stages import Task


def unit(rows):
    return nn.functional.normalize(rows, dim=1)


def test_variance_explained_by_hand():
    rows = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    assert variance_explained(rows, torch.tensor([[0.5, 0.0], [-1.0, 0.0]])) == pytest.approx(1 - 0.25 / 2)
    assert variance_explained(rows, torch.zeros(2, 2)) == 0
    assert variance_explained(torch.ones(3, 2), torch.ones(3, 2)) is None


def planted(n, d, n_atoms, seed=0):
    """Unit rows that are each a mixture of two of n_atoms directions."""
    generator = torch.Generator().manual_seed(seed)
    atoms = unit(torch.randn(n_atoms, d, generator=generator))
    pairs = torch.stack([torch.randperm(n_atoms, generator=generator)[:2] for _ in range(n)])
    return unit(atoms[pairs[:, 0]] + atoms[pairs[:, 1]])


def test_the_critic_finds_planted_parts_and_not_random_rows():
    scores = judge(planted(400, 32, 24), m=24, k=2, steps=120, seed=0)
    floor = judge(unit(torch.randn(400, 32, generator=torch.Generator().manual_seed(3))), m=24, k=2, steps=120, seed=0)
    assert scores.ve > 0.8 and scores.ve_heldout > 0.75
    assert floor.ve < 0.5 and floor.ve_heldout < 0.3


def test_the_critic_is_decided_by_its_seed_alone():
    rows = planted(60, 8, 6)
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = judge(rows, 6, 2, 20, seed=5)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    assert judge(rows, 6, 2, 20, seed=5) == first != judge(rows, 6, 2, 20, seed=6)
    assert random_floor(40, 8, 4, 2, 10, 0) == random_floor(40, 8, 4, 2, 10, 0)


def test_more_critic_latents_than_rows_and_identical_rows():
    assert judge(unit(torch.randn(3, 4)), m=6, k=2, steps=5, seed=0).ve is not None
    assert judge(torch.ones(10, 4) / 2, m=2, k=1, steps=5, seed=0).ve is None


def stretched(n, d, seed=0):
    """Unit rows without parts, in a few directions more than in others."""
    generator = torch.Generator().manual_seed(seed)
    return unit(torch.randn(n, d, generator=generator) * torch.arange(1, d + 1) ** -0.7 + 0.05)


def test_gaussian_rows_have_the_mean_and_covariance_of_the_rows():
    rows = stretched(400, 12)
    scores = gaussian_rows(rows, 0)
    assert torch.allclose(scores.norm(dim=1), torch.ones(400), atol=1e-6)
    assert torch.allclose(scores.mean(0), rows.mean(0), atol=1e-3)
    assert torch.linalg.matrix_norm(scores.t().cov() - rows.t().cov()) < 0.01 * torch.linalg.matrix_norm(rows.t().cov())
    assert torch.equal(scores, gaussian_rows(rows, 0)) and not torch.equal(scores, gaussian_rows(rows, 1))


def test_gaussian_rows_where_rows_are_few_or_alike():
    few = gaussian_rows(random_rows(5, 30, 0), 1)
    assert few.shape == (5, 30) and torch.linalg.matrix_rank(few - few.mean(0)) == 4
    assert torch.allclose(gaussian_rows(torch.ones(4, 9) / 3, 0), torch.ones(4, 9) / 3)


def test_rows_without_parts_are_explained_like_their_gaussian_floor():
    """Random rows and stretched ones: nothing is left above the second floor, while the first is passed by the
    stretched."""
    for rows, passes_the_first in ((random_rows(800, 24, 9), False), (stretched(800, 24), True)):
        scores = judge_beside_floors(rows, 40, 2, 80, (0,))[0]
        assert abs(scores["ve_heldout_excess_over_gaussian"]) < 0.03
        assert (scores["ve_heldout_excess"] > 0.2) is passes_the_first and scores["ve_heldout_excess"] > -0.03


def test_planted_parts_stand_above_both_floors():
    scores = judge_beside_floors(planted(400, 32, 24), 24, 2, 120, (0,))[0]
    assert scores["ve_heldout_excess"] > 0.4 and scores["ve_heldout_excess_over_gaussian"] > 0.3
    assert scores["ve_excess"] == scores["ve"] - scores["ve_random"]
    assert scores["ve_heldout_excess_over_gaussian"] == scores["ve_heldout"] - scores["ve_gaussian_heldout"]


def test_the_grid_is_the_critic_at_each_point():
    rows = planted(60, 8, 6)
    table = critic_grid(rows, 100, (0.04, 0.1), (1, 3), 15, seed=2)
    assert [(row["width"], row["m"], row["k"]) for row in table] == [
        (0.04, 4, 1),
        (0.04, 4, 3),
        (0.1, 10, 1),
        (0.1, 10, 3),
    ]
    for row in table:
        alone = judge(rows, row["m"], row["k"], 15, seed=2)
        assert (row["ve"], row["ve_heldout"]) == (alone.ve, alone.ve_heldout)
        assert row["ve_random"] == random_floor(60, 8, row["m"], row["k"], 15, 2).ve
        assert row["ve_gaussian"] == judge(gaussian_rows(rows, 4), row["m"], row["k"], 15, seed=2).ve


def test_several_critics_are_each_what_one_is_alone():
    rows = planted(60, 8, 6)
    moved = Task("critics", n_trained(3))
    critics = judge_beside_floors(rows, 6, 2, 15, (3, 4, 5), task=moved)
    assert moved.done == moved.total == 7
    for seed, critic in zip((3, 4, 5), critics, strict=True):
        (alone,) = judge_beside_floors(rows, 6, 2, 15, (seed,))
        assert all(critic[name] == alone[name] for name in ("ve", "ve_heldout", "ve_excess_over_gaussian"))
        # the random floor is the first critic's
        assert critic["ve_random"] == random_floor_at(60, 8, 6, 2, 15, 3).ve
    values = [judge(rows, 6, 2, 15, seed).ve_heldout for seed in (3, 4, 5)]
    assert by_score(critics)["ve_heldout"] == values
    assert mean_scores(critics)["ve_heldout"] == pytest.approx(sum(values) / 3)
    # four rows leave none to hold out
    few = judge_beside_floors(rows[:4], 6, 2, 5, (3, 4))
    assert mean_scores(few)["ve_heldout"] is None and mean_scores(few)["ve"] is not None


def test_the_dtype_is_that_of_the_products_in_training():
    rows = planted(200, 16, 10)
    fp32, bf16 = (judge(rows, 10, 2, 60, 0, dtype) for dtype in ("fp32", "bf16"))
    assert fp32 != bf16 and bf16.ve == pytest.approx(fp32.ve, abs=0.03)
    fast = "bf16" if multiplies_bf16(torch.device("cpu")) else "fp32"
    assert judge(rows, 10, 2, 60, 0) == judge(rows, 10, 2, 60, 0, fast)


def test_the_random_floor_between_two_counts_of_rows_is_the_floor_of_that_count():
    for count in (16, 31, 32, 48, 768, 800):
        assert random_floor_at(count, 12, 6, 2, 30, 0) == random_floor(count, 12, 6, 2, 30, 0)
    for count in (50, 333, 777, 790):
        read = random_floor_at(count, 12, 6, 2, 60, 3)
        # one draw of rows differs from another by about as much
        spread = [random_floor(count, 12, 6, 2, 60, seed).ve for seed in range(4, 10)]
        assert min(spread) - 0.03 < read.ve < max(spread) + 0.03
