"""What other rows cannot rebuild, against a slow loop, and in dictionaries whose answer is known."""

import numpy as np
import pytest
import torch

from metasae.train.moves import spare
from metasae.train.moves.spare import PARTS, left_over


def unit(rows):
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def slow(W, live):
    left = []
    for i in range(len(W)):
        rest, chosen = W[i], []
        for _ in range(min(PARTS, len(W) - 1)):
            cosines = np.where(live, np.abs(W @ rest), -1.0)
            cosines[[i, *chosen]] = -1.0
            chosen.append(int(cosines.argmax()))
            parts = W[[j for j in chosen if live[j]]]
            rest = W[i] - parts.T @ np.linalg.lstsq(parts.T, W[i], rcond=None)[0] if len(parts) else W[i]
        left.append((rest**2).sum())
    return np.array(left)


def dictionary(case, rng):
    W, live = rng.standard_normal((40, 12)), np.ones(40, bool)
    if case == "duplicates":
        W[10:20] = W[:10]
        W[20:25] = -W[:5]
    if case == "some dead":
        live[rng.choice(40, 20, replace=False)] = False
    if case == "all dead":
        live[:] = False
    if case == "two rows":
        W, live = W[:2], live[:2]
    return unit(W), live


@pytest.mark.parametrize("tile", [7, 1024])
@pytest.mark.parametrize("case", ["random", "duplicates", "some dead", "all dead", "two rows"])
def test_equals_the_slow_loop(case, tile, monkeypatch):
    monkeypatch.setattr(spare, "TILE", tile)
    W, live = dictionary(case, np.random.default_rng(3))
    left = left_over(torch.from_numpy(W), torch.from_numpy(live))
    np.testing.assert_allclose(left.numpy(), slow(W, live), atol=1e-5)


def test_a_mixture_of_others_is_spare_and_a_row_of_its_own_is_not():
    W = torch.eye(8)
    W[6] = (W[0] + W[1] - W[2]) / 3**0.5
    left = left_over(W, torch.ones(8, dtype=torch.bool))
    assert left[6] < 1e-5 and left[7] == 1 and left[5] == 1
    # a row that does not fire rebuilds nothing
    assert left_over(W, torch.arange(8) != 0)[6] == pytest.approx(1 / 3, abs=1e-5)


def test_one_row():
    assert left_over(torch.eye(3)[:1], torch.ones(1, dtype=torch.bool)).tolist() == [1.0]
