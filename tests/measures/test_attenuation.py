import pytest
import torch
from torch import nn

from metasae.measures.rows.critic import judge, random_rows
from metasae.measures.rows.seeds import attenuation, match


def unit(rows):
    return nn.functional.normalize(rows, dim=1)


def planted(n, d, atoms, seed=0):
    """`atoms` random directions, and n mixtures of two of them."""
    generator = torch.Generator().manual_seed(seed)
    directions = unit(torch.randn(atoms, d, generator=generator))
    pairs = torch.stack([torch.randperm(atoms, generator=generator)[:2] for _ in range(n)])
    share = 0.4 + 0.6 * torch.rand(n, 1, generator=generator)
    return directions, unit(directions[pairs[:, 0]] + share * directions[pairs[:, 1]])


def noisy(rows, squared, seed):
    """Each row plus noise of this squared length, at unit length again: 1 / (1 + squared) of the row is left."""
    noise = unit(torch.randn(rows.shape, generator=torch.Generator().manual_seed(seed)))
    return unit(rows + squared**0.5 * noise)


def test_by_hand():
    assert attenuation(0.4, 0.1, 0.8) == (pytest.approx(0.5), pytest.approx((0.4 - 0.2 * 0.1) / 0.8))


def test_numbers_that_do_not_exist():
    for ve, floor, mean_r in ((None, 0.1, 0.5), (0.4, None, None), (0.4, 0.1, -0.2)):
        assert attenuation(ve, floor, mean_r) == (None, None)
    assert attenuation(0.4, None, 0.8) == (pytest.approx(0.5), None)


@pytest.mark.parametrize("squared", [0.09, 0.3])
def test_noise_lowers_ve_and_r_but_not_their_quotient(squared):
    _, rows = planted(500, 128, 24)
    clean = judge(rows, 24, 2, 150, seed=0)
    a, b = noisy(rows, squared, 11), noisy(rows, squared, 12)
    ve, floor = judge(a, 24, 2, 150, seed=0).ve, judge(random_rows(500, 128, 3), 24, 2, 150, seed=0).ve
    mean_r = match(a, b).mean_r
    over_r, over_r_low = attenuation(ve, floor, mean_r)
    assert mean_r == pytest.approx(1 / (1 + squared), abs=0.02)
    assert ve < clean.ve - 0.04
    assert over_r > clean.ve - 0.01
    assert over_r_low < clean.ve < over_r + 0.01
