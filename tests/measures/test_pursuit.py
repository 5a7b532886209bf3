from itertools import combinations

import numpy as np
import pytest
import torch
from scipy.optimize import nnls

from metasae.measures.rows.pursuit import pursue


def unit(rows):
    rows = np.asarray(rows, np.float64)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def brute_force(rows, i, most):
    """min ||w_i - c S||^2 over every set S of up to `most` other rows and every c >= 0."""
    gram, errors = unit(rows) @ unit(rows).T, [1.0]
    others = [j for j in range(len(rows)) if j != i]
    for size in range(1, most + 1):
        sets = np.array(list(combinations(others, size)))
        # a set with a dependent row explains no more than one without, so its ridge may be anything small
        within, dots = gram[sets[:, :, None], sets[:, None, :]] + 1e-13 * np.eye(size), gram[i][sets]
        c = np.linalg.solve(within, dots[..., None])[..., 0]
        explained = np.where((c > 0).all(1), (c * dots).sum(1), 0)
        errors.append(min(errors[-1], 1 - explained.max()))
    return errors[1:]


def rows_of_kind(kind, n, d, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=generator)

    if kind == "random":
        return draw(n, d)
    if kind == "positive":
        return draw(n, d).abs()
    if kind == "mixtures":
        return torch.rand(n, 8, generator=generator).pow(4) @ draw(8, d) + 0.1 * draw(n, d)
    if kind == "opposed":
        half = draw(n // 2, d)
        return torch.cat([half, 0.3 * draw(n // 2, d) - half])
    if kind == "duplicates":
        half = draw(n // 2, d)
        return torch.cat([half, half])
    if kind == "opposites":
        half = draw(n // 2, d)
        return torch.cat([half, -half])
    assert kind == "cluster"
    return 3 * draw(1, d) + draw(n, d)


KINDS = ("random", "positive", "mixtures", "opposed", "opposites", "duplicates", "cluster")


@pytest.mark.parametrize("d", [3, 16])
@pytest.mark.parametrize("kind", KINDS)
def test_forty_rows_equal_brute_force(kind, d):
    rows = rows_of_kind(kind, 40, d)
    pursuit = pursue(rows, 3)
    for i in (0, 21, 39):
        assert pursuit.errors[i] == pytest.approx(brute_force(rows, i, 3), abs=1e-9)
    assert pursuit.proved.all()


@pytest.mark.parametrize("kind", ["random", "opposed", "mixtures"])
def test_nine_rows_equal_an_nnls_over_every_set(kind):
    rows = rows_of_kind(kind, 9, 4, seed=3)[:9]
    pursuit, w = pursue(rows, 4), unit(rows)
    for i in range(len(w)):
        others = np.delete(np.arange(len(w)), i)
        for k in range(1, 5):
            best = min(nnls(w[list(chosen)].T, w[i])[1] ** 2 for chosen in combinations(others, k))
            assert pursuit.errors[i, k - 1] == pytest.approx(best, abs=1e-9)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("pool", "beam"), [(1, 1), (4, 2), (30, 8)])
def test_a_narrow_search_is_an_upper_bound_and_what_it_proves_is_true(kind, pool, beam):
    rows = rows_of_kind(kind, 120, 6)
    pursuit = pursue(rows, 3, pool=pool, beam=beam)
    for i in range(0, 120, 29):
        best = brute_force(rows, i, 2)
        assert (pursuit.errors[i, :2] >= np.array(best) - 1e-9).all()
        assert pursuit.errors[i, 0] == pytest.approx(best[0], abs=1e-6)
        if pursuit.proved[i, 1]:
            assert pursuit.errors[i, 1] == pytest.approx(best[1], abs=2e-6)
    assert pursuit.proved[:, 0].all()
    assert (pursuit.errors <= pursuit.omp_errors + 1e-12).all()


def test_pairs_are_proved_without_all_rows_among_the_candidates():
    rows, some = rows_of_kind("random", 400, 64), np.arange(0, 400, 20)
    pursuit = pursue(rows, 2, some, pool=64)
    assert pursuit.proved[:, 1].all()
    assert pursuit.errors == pytest.approx(np.array([brute_force(rows, i, 2) for i in some]), abs=1e-9)


def slow_omp(rows, i, most):
    w, chosen, errors = unit(rows), [], []
    residual = w[i]
    for _ in range(most):
        products = w @ residual
        products[[i, *chosen]] = -np.inf
        if products.max() > 1e-6:
            chosen.append(int(products.argmax()))
        if chosen:
            c, _ = nnls(w[chosen].T, w[i])
            chosen, c = [j for j, value in zip(chosen, c, strict=True) if value > 0], c[c > 0]
            residual = w[i] - c @ w[chosen]
        errors.append(residual @ residual)
    return errors


@pytest.mark.parametrize("kind", KINDS)
def test_omp_equals_a_slow_twin(kind):
    rows = rows_of_kind(kind, 60, 10, seed=1)
    pursuit = pursue(rows, 4, pool=5)
    for i in range(0, 60, 7):
        assert pursuit.omp_errors[i] == pytest.approx(slow_omp(rows, i, 4), abs=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_parts_and_coefficients_rebuild_the_error(kind):
    rows = rows_of_kind(kind, 50, 7, seed=2)
    pursuit, w = pursue(rows, 4, pool=20), unit(rows)
    assert (np.diff(pursuit.errors, axis=1) <= 1e-12).all()
    for i in range(50):
        for k in range(4):
            parts, c = pursuit.parts[i, k], pursuit.coefficients[i, k]
            used = parts >= 0
            assert used.sum() <= k + 1 and i not in parts and len(set(parts[used])) == used.sum()
            assert (c[used] > 0).all() and (c[~used] == 0).all() and (np.diff(c) <= 0).all()
            assert pursuit.errors[i, k] == pytest.approx(((w[i] - c[used] @ w[parts[used]]) ** 2).sum(), abs=1e-12)


def test_by_hand():
    rows = torch.tensor([[3.0, 0, 0], [0, 2, 0], [1, 1, 0], [0, 0, -1]])
    pursuit = pursue(rows, 2)
    # (1, 1) is half of one axis and all of two; an axis is half of the diagonal; the fourth row has nothing in common
    # with the others
    assert pursuit.errors == pytest.approx(np.array([[0.5, 0.5], [0.5, 0.5], [0.5, 0.0], [1, 1]]), abs=1e-12)
    assert set(pursuit.parts[2, 1]) == {0, 1} and pursuit.coefficients[2, 1] == pytest.approx([0.5**0.5] * 2)
    assert pursuit.parts[0].tolist() == [[2, -1], [2, -1]] and pursuit.parts[3].tolist() == [[-1, -1]] * 2


def test_a_copy_is_one_part_and_an_opposite_none():
    row = torch.tensor([[1.0, 2, 3]])
    copies = pursue(torch.cat([row, 2 * row]), 3)
    assert copies.errors == pytest.approx(np.zeros((2, 3)), abs=1e-12) and copies.parts[0, 2].tolist() == [1, -1, -1]
    opposites = pursue(torch.cat([row, -row]), 3)
    assert (opposites.errors == 1).all() and (opposites.parts == -1).all() and opposites.proved.all()


def test_a_part_far_from_the_target_is_found():
    """w = (a + b) / norm with a and b nearly opposite: b's cosine with w is below that of many others, and a alone is a
    poor start."""
    generator = torch.Generator().manual_seed(0)
    a = torch.zeros(1, 40)
    a[0, :2] = torch.tensor([0.9, 0.3])
    b = torch.zeros(1, 40)
    b[0, :2] = torch.tensor([-0.8, 0.3])
    w = a + b
    decoys = torch.nn.functional.normalize(
        torch.randn(300, 40, generator=generator), dim=1
    ) + 0.4 * torch.nn.functional.normalize(w)
    pursuit = pursue(torch.cat([w, decoys, a, b]), 2, targets=np.array([0]), pool=10)
    assert set(pursuit.parts[0, 1]) == {301, 302} and pursuit.errors[0, 1] == pytest.approx(0, abs=1e-12)


def test_targets_tiles_and_lengths_change_nothing(monkeypatch):
    rows = rows_of_kind("mixtures", 90, 12)
    whole = pursue(rows, 3, pool=30)
    some = np.array([5, 88, 17])
    monkeypatch.setattr("metasae.measures.rows.pursuit.TILE", 7)
    monkeypatch.setattr("metasae.measures.rows.pursuit.SEARCH_TILE", 2)
    pursuit = pursue(rows * torch.linspace(0.1, 9, 90)[:, None], 3, targets=some, pool=30)
    assert pursuit.errors == pytest.approx(whole.errors[some], abs=1e-6) and pursuit.targets.tolist() == some.tolist()
    assert (pursuit.parts == whole.parts[some]).all()


def test_the_summary():
    rows = rows_of_kind("random", 30, 5)
    pursuit = pursue(rows, 2)
    summary = pursuit.as_dict()
    assert summary["e_2"] == pytest.approx(pursuit.errors[:, 1].mean()) and summary["e_2_proved"] == 1
    assert summary["share_e_2_below_0.5"] == (pursuit.errors[:, 1] < 0.5).mean()
