import numpy as np
import pytest
import torch
from fakes import random_sae
from torch import nn

from metasae.errors import UserError
from metasae.measures.critic import judge, variance_explained
from metasae.measures.decomposability import encoder_decoder_cosine, measure_decomposability, nearest_cosines, own_meta, random_floor


def unit(rows):
    return nn.functional.normalize(rows, dim=1)


def test_nearest_cosines(monkeypatch):
    rows = unit(torch.randn(23, 5, generator=torch.Generator().manual_seed(0)))
    rows[7] = rows[20]
    monkeypatch.setattr("metasae.measures.decomposability.TILE", 4)
    cosines = rows @ rows.t()
    expected = [max(float(cosines[i, j]) for j in range(23) if j != i) for i in range(23)]
    found = nearest_cosines(rows)
    assert found.tolist() == pytest.approx(expected, abs=1e-6) and float(found[7]) == pytest.approx(1)


def test_encoder_decoder_cosine_of_the_live():
    sae = random_sae()
    live = np.arange(24) % 3 == 0
    expected = [float(nn.functional.cosine_similarity(sae.W_enc[:, i], sae.W_dec[i], dim=0)) for i in range(0, 24, 3)]
    assert encoder_decoder_cosine(sae, live) == pytest.approx(np.mean(expected), abs=1e-6)


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
    found = judge(planted(400, 32, 24), m=24, k=2, steps=200, seed=0)
    floor = judge(unit(torch.randn(400, 32, generator=torch.Generator().manual_seed(3))), m=24, k=2, steps=200, seed=0)
    assert found.ve > 0.8 and found.ve_heldout > 0.75
    assert floor.ve < 0.5 and floor.ve_heldout < 0.3
    assert (found.n_rows, found.n_heldout) == (320, 80)


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


@pytest.mark.parametrize("normalize", ["none", "token"])
def test_own_meta_is_the_penalty_time_error(normalize):
    sae, meta = random_sae(), random_sae(8, 10, 3, seed=9, normalize=normalize)
    x, mean, std = meta.normalise(sae.W_dec)
    a = meta.pre_activations(x).relu()
    cut = a.flatten().sort(descending=True).values[3 * 24 - 1]
    rebuilt = torch.where(a >= cut, a, 0) @ meta.W_dec + meta.b_dec
    rebuilt = rebuilt if mean is None else rebuilt * std + mean
    assert own_meta(sae, meta)["own_meta_e"] == pytest.approx(float((sae.W_dec - rebuilt).square().sum(1).mean()), rel=1e-5)


def test_only_live_rows_are_judged():
    sae, live = random_sae(), np.arange(24) < 15
    before = measure_decomposability(sae, None, live, 0.2, 2, 15)
    sae.W_dec[20] = sae.W_dec[3]
    assert measure_decomposability(sae, None, live, 0.2, 2, 15) == before
    assert before["n_rows"] == 15 and before["critic"]["m"] == 5 and "own_meta_e" not in before
    assert before["meta_ve_excess"] == before["meta_ve"] - before["meta_ve_random"]
    assert all(parameter.grad is None for parameter in sae.parameters())


def test_a_dead_sae_is_a_user_error():
    with pytest.raises(UserError, match="1 of 24 latents"):
        measure_decomposability(random_sae(), None, np.arange(24) == 2, 0.1, 2, 5)
