import numpy as np
import pytest
import torch
from torch import nn

from metasae.measures.rows.attenuation import attenuation, corrected_pursuit
from metasae.measures.rows.critic import judge, random_rows
from metasae.measures.rows.pursuit import pursue
from metasae.measures.rows.seeds import Matching, match


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


def matching_of(cosines):
    cosines = np.array(cosines, np.float64)
    return Matching(
        np.where(np.isnan(cosines), -1, np.arange(len(cosines))),
        cosines,
        np.arange(len(cosines)),
        cosines,
        len(cosines),
    )


def test_by_hand():
    found = attenuation(0.4, 0.1, matching_of([0.7, 0.9, np.nan]))
    assert found.mean_r == pytest.approx(0.8) and (found.n, found.n_matched) == (3, 2)
    assert found.ve_over_r == pytest.approx(0.5) and found.ve_over_r_low == pytest.approx((0.4 - 0.2 * 0.1) / 0.8)


@pytest.mark.parametrize(("ve", "floor", "cosines"), [(None, 0.1, [0.5]), (0.4, None, [np.nan]), (0.4, 0.1, [-0.2])])
def test_numbers_that_do_not_exist(ve, floor, cosines):
    found = attenuation(ve, floor, matching_of(cosines))
    assert found.ve_over_r is None and found.ve_over_r_low is None
    assert attenuation(0.4, None, matching_of([0.8])).ve_over_r_low is None


@pytest.mark.parametrize("squared", [0.09, 0.3])
def test_noise_lowers_ve_and_r_but_not_their_quotient(squared):
    _, rows = planted(500, 128, 24)
    clean = judge(rows, 24, 2, 150, seed=0)
    a, b = noisy(rows, squared, 11), noisy(rows, squared, 12)
    found = attenuation(
        judge(a, 24, 2, 150, seed=0).ve, judge(random_rows(500, 128, 3), 24, 2, 150, seed=0).ve, match(a, b)
    )
    assert found.mean_r == pytest.approx(1 / (1 + squared), abs=0.02)
    assert found.ve < clean.ve - 0.04
    assert found.ve_over_r > clean.ve - 0.01
    assert found.ve_over_r_low < clean.ve < found.ve_over_r + 0.01


@pytest.mark.parametrize("squared", [0.1, 0.4])
def test_the_pursuit_without_noise_is_recovered(squared):
    directions, mixtures = planted(150, 256, 50, seed=1)
    rows = torch.cat([directions, mixtures])
    true = pursue(rows, 2)
    a, b = noisy(rows, squared, 11), noisy(rows, squared, 12)
    seen, r = pursue(a, 2), match(a, b).cosine
    corrected = corrected_pursuit(a, seen, r).errors
    mixed = np.arange(50, 200)
    kept = 1 / (1 + squared)
    # two parts at right angles: the target and the parts each keep their share
    assert true.errors[mixed, 1].max() < 1e-9 and seen.errors[mixed, 1].mean() == pytest.approx(1 - kept**2, abs=0.03)
    assert np.isfinite(corrected).mean() > 0.97
    assert abs(np.nanmean(corrected[:, 0]) - true.errors[:, 0].mean()) < 0.02
    assert abs(np.nanmean(corrected[mixed, 1])) < 0.04
    # 1 - (1 - e) / r takes out the noise of the target alone, and the parts are noisy too
    assert (1 - (1 - seen.errors[mixed, 1]) / r[mixed]).mean() == pytest.approx(1 - kept, abs=0.03)


def test_without_noise_nothing_is_corrected():
    rows = random_rows(30, 12, 0)
    found = pursue(rows, 3)
    corrected = corrected_pursuit(rows, found, np.ones(30)).errors
    known = np.isfinite(corrected)
    assert known[:, 0].all() and corrected[known] == pytest.approx(found.errors[known], abs=1e-9)


def test_latents_without_a_good_match_have_no_number():
    rows = torch.tensor([[1.0, 0, 0], [0, 1, 0], [1, 1, 0], [0, 0, 1]])
    found = pursue(rows, 2)
    corrected = corrected_pursuit(rows, found, np.array([0.9, np.nan, 0.9, 0.4]))
    # row 2 needs row 1 for two parts; for one part, the first axis or the second serves as well
    assert np.isnan(corrected.errors[[1, 3]]).all() and np.isnan(corrected.errors[2, 1])
    assert corrected.as_dict()["e_2_corrected_n"] == np.isfinite(corrected.errors[:, 1]).sum()
    none = corrected_pursuit(rows, found, np.full(4, np.nan)).as_dict()
    assert none == {
        "n_targets": 4,
        "e_1_corrected": None,
        "e_1_corrected_n": 0,
        "e_2_corrected": None,
        "e_2_corrected_n": 0,
    }
