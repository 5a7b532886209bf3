import numpy as np
import pytest
import torch
from fakes import random_sae
from torch import nn

from metasae.errors import UserError
from metasae.measures.rows.decomposability import (
    encoder_decoder_cosines,
    measure_decomposability,
    most_decomposable,
    nearest_cosines,
    own_meta,
)
from metasae.measures.rows.pursuit import pursue
from metasae.sae.gradients import matmul_dtype

CPU_DTYPE = str(matmul_dtype("auto", torch.device("cpu"))).removeprefix("torch.")


def unit(rows):
    return nn.functional.normalize(rows, dim=1)


def test_nearest_cosines(monkeypatch):
    rows = unit(torch.randn(23, 5, generator=torch.Generator().manual_seed(0)))
    rows[7] = rows[20]
    monkeypatch.setattr("metasae.measures.rows.decomposability.TILE", 4)
    cosines = rows @ rows.t()
    expected = [max(float(cosines[i, j]) for j in range(23) if j != i) for i in range(23)]
    numbers = nearest_cosines(rows)
    assert numbers.tolist() == pytest.approx(expected, abs=1e-6) and float(numbers[7]) == pytest.approx(1)


def test_encoder_decoder_cosine_of_the_live():
    sae = random_sae()
    live = np.arange(24) % 3 == 0
    expected = [float(nn.functional.cosine_similarity(sae.W_enc[:, i], sae.W_dec[i], dim=0)) for i in range(0, 24, 3)]
    assert encoder_decoder_cosines(sae, live) == pytest.approx(expected, abs=1e-6)
    numbers = measure_decomposability(sae, None, live, 0.2, 2, 5)
    assert numbers["encoder_decoder_cosine"] == pytest.approx(np.mean(expected), abs=1e-6)
    assert numbers["encoder_decoder_cosine_quantiles"]["0.5"] == pytest.approx(np.median(expected), abs=1e-6)


@pytest.mark.parametrize("normalize", ["none", "token"])
def test_own_meta_is_the_penalty_time_error(normalize):
    sae, meta = random_sae(), random_sae(8, 10, 3, seed=9, normalize=normalize)
    x, mean, std = meta.normalise(sae.W_dec)
    a = meta.pre_activations(x).relu()
    cut = a.flatten().sort(descending=True).values[3 * 24 - 1]
    rebuilt = torch.where(a >= cut, a, 0) @ meta.W_dec + meta.b_dec
    rebuilt = rebuilt if mean is None else rebuilt * std + mean
    assert own_meta(sae, meta)["own_meta_e"] == pytest.approx(
        float((sae.W_dec - rebuilt).square().sum(1).mean()), rel=1e-5
    )


def test_only_live_rows_are_judged():
    sae, live = random_sae(), np.arange(24) < 15
    before = measure_decomposability(sae, None, live, 0.2, 2, 15)
    sae.W_dec[20] = sae.W_dec[3]
    assert measure_decomposability(sae, None, live, 0.2, 2, 15) == before
    assert before["n_rows"] == 15 and before["critic"] == {
        "m": 5, "k": 2, "steps": 15, "n_rows": 12, "n_heldout": 3, "seeds": [0, 1, 2, 3, 4], "dtype": CPU_DTYPE,
    }  # fmt: skip
    assert "own_meta_e" not in before
    assert before["meta_ve_excess"] == pytest.approx(before["meta_ve"] - before["meta_ve_random"])
    assert set(before["critics"]) == {key for key in before if key.startswith("meta_ve")}
    for key, values in before["critics"].items():
        assert len(values) == 5 and before[key] == pytest.approx(np.mean(values))
    assert all(parameter.grad is None for parameter in sae.parameters())


def test_the_longer_measures_are_added_when_asked_for():
    sae, live = random_sae(), np.arange(24) < 20
    short = measure_decomposability(sae, None, live, 0.2, 2, 5)
    long = measure_decomposability(sae, None, live, 0.2, 2, 5, grid=True, parts=2)
    assert {key: long[key] for key in short} == short and set(long) - set(short) == {"critic_grid", "pursuit"}
    assert len(long["critic_grid"]) == 12


def test_the_first_critics_are_the_same_however_many_there_are():
    sae, live = random_sae(), np.arange(24) < 20
    one, three = (measure_decomposability(sae, None, live, 0.2, 2, 5, critics=count) for count in (1, 3))
    assert one["critic"]["seeds"] == [0] and three["critic"]["seeds"] == [0, 1, 2]
    for key, values in three["critics"].items():
        assert one["critics"][key] == values[:1] == [one[key]]


def test_the_pursuit_names_latents_and_has_floors():
    sae, live = random_sae(), np.arange(24) % 2 == 1
    sae.W_dec[5] = nn.functional.normalize(sae.W_dec[1] + sae.W_dec[3], dim=0)
    numbers = measure_decomposability(sae, None, live, 0.2, 2, 5, parts=2)["pursuit"]
    first = numbers["most_decomposable"][0]
    assert first["e"] == pytest.approx(0, abs=1e-6) and first["latent"] in (1, 3, 5)
    named = next(entry for entry in numbers["most_decomposable"] if entry["latent"] == 5)
    assert {part["latent"] for part in named["parts"]} == {1, 3}
    assert numbers["n_rows"] == numbers["n_targets"] == 12
    assert numbers["e_2_excess"] == numbers["e_2_random"] - numbers["e_2"]
    assert numbers["e_2_excess_over_gaussian"] == numbers["e_2_gaussian"] - numbers["e_2"]


def test_fewer_latents_than_are_named():
    numbers = pursue(torch.tensor([[1.0, 0], [1, 0], [0, 1]]), 2)
    named = most_decomposable(numbers, np.array([7, 8, 9]), 20)
    assert [entry["latent"] for entry in named] == [7, 8, 9] and named[2] == {"latent": 9, "e": 1.0, "parts": []}
    assert named[0]["parts"] == [{"latent": 8, "coefficient": pytest.approx(1)}]


def test_a_live_latent_without_a_decoder_row_is_a_user_error():
    sae = random_sae()
    sae.W_dec[4] = 0
    with pytest.raises(UserError, match="latent 4"):
        measure_decomposability(sae, None, np.arange(24) < 9, 0.1, 2, 5)
    assert measure_decomposability(sae, None, np.arange(24) > 9, 0.1, 2, 5)["n_rows"] == 14


def test_a_dead_sae_is_a_user_error():
    with pytest.raises(UserError, match="1 of 24 latents"):
        measure_decomposability(random_sae(), None, np.arange(24) == 2, 0.1, 2, 5)
