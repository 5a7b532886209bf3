from itertools import combinations

import numpy as np
import pytest
import torch
from scipy.optimize import nnls

from metasae.measures.rows.subsets import best_sets, fit


def problem(t, s, d, seed=0):
    generator = torch.Generator().manual_seed(seed)
    atoms = torch.nn.functional.normalize(torch.randn(t, s, d, generator=generator, dtype=torch.float64), dim=2)
    w = torch.nn.functional.normalize(torch.randn(t, d, generator=generator, dtype=torch.float64), dim=1)
    return atoms, w, atoms @ atoms.transpose(1, 2), (atoms @ w[..., None])[..., 0]


@pytest.mark.parametrize(("s", "d"), [(1, 3), (2, 3), (4, 5), (4, 30), (5, 4)])
def test_fit_equals_nnls(s, d):
    atoms, w, gram, dots = problem(50, s, d)
    present = torch.rand(50, s, generator=torch.Generator().manual_seed(1)) < 0.8
    c = fit(gram, dots, present)
    assert (c >= 0).all() and (c[~present] == 0).all()
    for i in range(50):
        used = atoms[i][present[i]].numpy()
        expected = nnls(used.T, w[i].numpy())[1] if len(used) else 1.0
        assert float((w[i] - c[i] @ atoms[i]).norm()) == pytest.approx(expected, abs=1e-9)


def test_fit_with_copies_and_with_nothing_to_gain():
    atoms, w, _, _ = problem(1, 2, 4)
    copies = atoms[:, [0, 0]] * torch.sign(atoms[0, 0] @ w[0])
    c = fit(copies @ copies.transpose(1, 2), (copies @ w[..., None])[..., 0], torch.ones(1, 2, dtype=torch.bool))
    assert float(c.sum()) == pytest.approx(abs(float(atoms[0, 0] @ w[0]))) and (c >= 0).all()
    assert (
        fit(
            torch.eye(3, dtype=torch.float64)[None],
            -torch.ones(1, 3, dtype=torch.float64),
            torch.ones(1, 3, dtype=torch.bool),
        )
        == 0
    ).all()


def test_a_wide_beam_looks_at_every_set():
    atoms, w, gram, dots = problem(6, 10, 6)
    sets, whole = best_sets(gram, dots, torch.ones(6, 10, dtype=torch.bool), 4, beam=300)
    assert whole.all()
    for i in range(6):
        c, _ = nnls(atoms[i].T.numpy(), w[i].numpy())
        support = set(np.flatnonzero(c))
        if len(support) <= 4:
            # the best mixture of all is the best of its own size
            assert set(sets[i, len(support) - 1].tolist()) - {-1} == support


def test_a_narrow_beam_says_so():
    _, _, gram, dots = problem(6, 10, 6)
    usable = torch.ones(6, 10, dtype=torch.bool)
    # only pairs that are better than one candidate are sets
    pairs = [
        sum(
            bool((fit(gram[i, list(p)][:, list(p)][None], dots[i, list(p)][None], usable[:1, :2]) > 0).all())
            for p in combinations(range(10), 2)
        )
        for i in range(6)
    ]
    beam = sorted(pairs)[2]
    _, whole = best_sets(gram, dots, usable, 3, beam)
    assert whole[:, :2].all() and whole[:, 2].tolist() == [count <= beam for count in pairs]


def test_unusable_candidates_stay_out():
    _, _, gram, dots = problem(4, 8, 6)
    usable = torch.arange(8).expand(4, 8) >= 5
    sets, _ = best_sets(gram, dots, usable, 3, beam=10)
    assert ((sets == -1) | (sets >= 5)).all()
    assert (best_sets(gram, -dots.abs(), usable, 1, beam=10)[0] == -1).all()
