import json

import pytest
import torch
from fakes import FakeCache, random_sae, random_split

from metasae.data.split import Part
from metasae.errors import UserError
from metasae.files import json_safe
from metasae.measures.firing.calibrate import Calibration
from metasae.measures.suite import measure_sae, reference_of
from metasae.recipe.recipe import Measure

SPEC = Measure(tokens=300, calibration_tokens=200, meta_steps=10, meta_n=0.2, meta_k=2)


def cache():
    return FakeCache(calibration=random_split(250, seed=5), evaluation=random_split(400, seed=6))


def measured(sae, meta, cache, **options):
    return measure_sae(sae, meta, cache, SPEC, reference=reference_of(cache, SPEC), **options)


def test_measures_json():
    sae, meta = random_sae(), random_sae(8, 6, 2, seed=2, normalize="token")
    measures = measured(sae, meta, cache(), seed=3)
    json.dumps(measures, allow_nan=False)
    assert set(measures) == {"conditions", "calibration", "fidelity", "cooccurrence", "decomposability", "settings"}
    conditions = measures["conditions"]
    assert (
        conditions["n_tokens"] == measures["cooccurrence"]["n_tokens"] == 300
        and conditions["calibration_tokens"] == 200
    )
    assert conditions["threshold"] == float(sae.threshold[0]) and torch.all(sae.threshold == sae.threshold[0])
    assert measures["calibration"]["l0"] == 4 and conditions["rule"] == "rate" and conditions["seed"] == 3
    assert conditions["l0_realised"] == measures["fidelity"]["l0"] == measures["cooccurrence"]["l0_realised"]
    assert "own_meta_e" in measures["decomposability"]


def test_again_gives_the_same():
    assert measured(random_sae(), None, cache()) == measured(random_sae(), None, cache())


def test_a_calibration_that_is_given_is_used():
    given = Calibration(threshold=0.25, l0=4.0, n_tokens=200, k=4)
    sae = random_sae()
    sae.threshold = torch.full([sae.n_latents], 0.25)
    measures = measured(sae, None, cache(), calibration=given)
    assert measures["conditions"]["threshold"] == 0.25 and float(sae.threshold[3]) == 0.25


def test_thresholds_of_its_own_are_kept_and_counted():
    sae = random_sae()
    own = torch.linspace(0.1, 0.4, sae.n_latents)
    sae.threshold = own.clone()
    measures = measured(sae, None, cache())
    assert torch.equal(sae.threshold, own)
    assert measures["conditions"]["rule"] == "own" and measures["conditions"]["threshold"] == pytest.approx(0.25)
    x = torch.cat(list(random_split(250, seed=5).blocks(50)))[:200]
    assert measures["calibration"]["l0"] == pytest.approx(float((sae.encode(x) > 0).sum(1).float().mean()), abs=0.02)


def test_empty_evaluation_is_a_user_error():
    with pytest.raises(UserError, match="no evaluation tokens"):
        measured(random_sae(), None, FakeCache(calibration=random_split(9), evaluation=random_split(0)))


def test_head():
    split = random_split(50)
    head = Part(split, 0, 23)
    assert head.n_tokens == 23 and len(head.tokens) == len(head.documents) == len(head.positions) == 23
    assert [len(block) for block in head.blocks(10)] == [10, 10, 3]
    assert torch.equal(torch.cat(list(head.blocks(23))), split.x[:23])
    assert Part(split, 0, 999).n_tokens == 50


def test_json_safe():
    safe = json_safe({1: float("nan"), "a": (torch.tensor([1.0, float("inf")]), True, None, "x")})
    assert safe == {"1": None, "a": [[1.0, None], True, None, "x"]}
