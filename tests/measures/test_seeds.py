from itertools import permutations

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment

from metasae.errors import UserError
from metasae.measures.rows.seeds import chance_matching, match


def rows(n, d, seed):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


def cosines(a, b):
    a, b = a.double().numpy(), b.double().numpy()
    return np.array([[x @ y / np.linalg.norm(x) / np.linalg.norm(y) for y in b] for x in a])


def check(a, b):
    """One partner each, as many pairs as there can be, and the largest sum."""
    matching, table = match(a, b), cosines(a, b)
    used = matching.partner[matching.matched]
    assert len(used) == len(set(used.tolist())) == min(len(a), len(b))
    best = table[linear_sum_assignment(table, maximize=True)].sum()
    assert matching.cosine[matching.matched].sum() == pytest.approx(best, abs=1e-5)
    for i, j in enumerate(matching.partner):
        assert matching.cosine[i] == pytest.approx(table[i, j], abs=1e-6) if j >= 0 else np.isnan(matching.cosine[i])
    assert matching.nearest_cosine == pytest.approx(table.max(1), abs=1e-6)
    return matching


@pytest.mark.parametrize(("n_a", "n_b"), [(1, 1), (6, 6), (5, 7), (7, 5), (1, 4), (60, 60), (90, 61), (61, 90)])
def test_the_sum_is_the_largest(n_a, n_b, monkeypatch):
    monkeypatch.setattr("metasae.measures.rows.seeds.TILE", 8)
    check(rows(n_a, 6, n_a), rows(n_b, 6, 100 + n_b))


def test_against_every_permutation():
    a, b = rows(6, 3, 0), rows(6, 3, 1)
    table = cosines(a, b)
    best = max(sum(table[i, p[i]] for i in range(6)) for p in permutations(range(6)))
    assert match(a, b).cosine.sum() == pytest.approx(best, abs=1e-6)


def test_ties_duplicates_and_opposites():
    one = rows(3, 4, 0)
    check(one.repeat(6, 1), one.repeat(5, 1))
    check(torch.ones(9, 4), torch.ones(9, 4))
    check(torch.ones(4, 4), -torch.ones(6, 4))


def test_a_shuffled_noisy_copy_is_found_again():
    a = rows(300, 64, 0)
    order = torch.randperm(300, generator=torch.Generator().manual_seed(1))
    b = (3 * a + rows(300, 64, 2))[order]
    matching = check(a, b)
    assert torch.equal(order[torch.from_numpy(matching.partner)], torch.arange(300))
    # cos(g, (g + noise / 3) / norm) = 1 / sqrt(1 + 1/9)
    assert matching.mean_r == pytest.approx(0.9**0.5, abs=0.01)
    assert matching.found_again(0.9) > 0.95 and matching.found_again(0.99) == 0


def test_chance_is_what_the_spread_alone_gives():
    spread = torch.arange(1, 33) ** -0.5
    a, b = rows(300, 32, 0) * spread, rows(280, 32, 1) * spread
    chance = chance_matching(a, b, 0)
    assert chance.mean_r == chance_matching(2 * a, b, 0).mean_r and len(chance.partner) == 300
    assert match(a, b).mean_r == pytest.approx(chance.mean_r, abs=0.03) and chance.mean_r > 0.4
    assert match(a, a + 0.3 * rows(300, 32, 2) * spread).mean_r > chance.mean_r + 0.2


def test_shares_count_the_unmatched():
    a, b = torch.eye(4), torch.eye(4)[:2]
    matching = check(a, b)
    assert matching.partner.tolist()[:2] == [0, 1] and (matching.partner[2:] == -1).all()
    assert matching.as_dict() == {
        "n_a": 4, "n_b": 2, "unmatched": 2, "mean_r": 1.0,
        "found_again_0.5": 0.5, "found_again_0.7": 0.5, "found_again_0.9": 0.5,
        "nearest_mean": 0.5, "nearest_above_0.5": 0.5, "nearest_above_0.7": 0.5, "nearest_above_0.9": 0.5,
    }  # fmt: skip


def test_several_rows_may_share_a_nearest_row_but_not_a_partner():
    a = torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0]])
    b = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0]])
    matching = check(a, b)
    assert matching.nearest_cosine.argmin() == 1 and sorted(matching.partner.tolist()) == [0, 1, 2]


def test_bad_rows_are_told():
    with pytest.raises(UserError, match="row 1 of the second SAE"):
        match(torch.ones(2, 3), torch.tensor([[1.0, 0, 0], [0, 0, 0]]))
    with pytest.raises(UserError, match="width 3 cannot be matched with rows of width 4"):
        match(torch.ones(2, 3), torch.ones(2, 4))
