"""An SAE measured by several ranks: the measures.json of one process, also when it was calibrated together."""

import json

import numpy as np
import pytest
import torch

from metasae.data.cache.activations import harvest
from metasae.data.cache.cache import ActivationCache
from metasae.data.model.host import Host
from metasae.data.planted.planted_cache import PlantedCache
from metasae.measures.firing import selection
from metasae.measures.firing.calibrate import calibrate
from metasae.measures.suite import PARTS, measure_sae, reference_of
from metasae.ranks.ranks import ALONE, Ranks, deals
from metasae.recipe import recipe
from metasae.sae.sae import SAE, SAEConfig
from spawned import on_ranks

POINT, TOKENS = "blocks.1.hook_resid_pre", {"train": 100, "calibration": 800, "evaluation": 1500}
TEXT = recipe.Text(source="stories", context=16, calibration_share=0.3, evaluation_share=0.4)


def an_sae(d: int, n: int, seed: int = 2) -> SAE:
    generator = torch.Generator().manual_seed(seed)
    sae = SAE(SAEConfig(d, n, k=3))
    sae.init_weights(generator)
    sae.b_enc.copy_(0.1 * torch.randn(n, generator=generator))
    return sae


def spec_of(senses: str) -> recipe.Measure:
    return recipe.Measure(
        tokens=1500,
        calibration_tokens=800,
        output_tokens=200,
        senses=senses,
        meta_steps=5,
        meta_n=0.2,
        meta_k=2,
        pursuit_k=2,
        shifts=1,
        lift=True,
    )


def suite(sae, meta, cache, spec, host, folder, ranks):
    reference = reference_of(cache, spec, host, ranks=ranks)
    return measure_sae(sae, meta, cache, spec, host, reference=reference, folder=folder, ranks=ranks)


def measured(ranks, model, cache, senses, folder):
    """measures.json of an SAE on a model's activations with its firings kept, and of one on a planted world without."""
    host = Host.load(recipe.Model(path=str(model), dtype="fp32"), POINT)
    given = an_sae(32, 48)
    given.threshold = torch.full([48], 0.01)
    on_model = suite(given, None, ActivationCache(cache), spec_of(senses), host, folder=folder, ranks=ranks)
    world = PlantedCache({"d": 16, "independent": 12, "groups": 3, "parents": 2}, TOKENS)
    other = an_sae(16, 24)
    other.threshold = torch.full([24], 0.4)
    return [
        json.dumps(measures)
        for measures in (on_model, suite(other, an_sae(16, 6), world, spec_of(""), None, folder=None, ranks=ranks))
    ]


@pytest.fixture(scope="module")
def senses(tmp_path_factory):
    """Sixty sentences with a word of two senses, one by a river and one by a till."""
    rng, path = np.random.default_rng(0), tmp_path_factory.mktemp("senses") / "bank.jsonl"
    words = {"river": ["mill", "snow", "harbour", "gulls"], "money": ["counted", "sacks", "element", "function"]}
    rows = []
    for number in range(120):
        sense = ("river", "money")[number % 2]
        drawn = rng.choice(words[sense], 4)
        rows.append(
            {
                "word": "bank",
                "sense": sense,
                "before": f"{number} {' '.join(drawn[:2])} the",
                "target": "bank",
                "after": " ".join(drawn[2:]),
            }
        )
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_any_number_of_ranks_measures_the_same(build, load, stories, senses, tmp_path):
    model, cache = build("gpt2"), tmp_path / "cache"
    harvest(load("gpt2", POINT), TEXT, recipe.Harvest(dtype="fp32", batch_tokens=500), cache, TOKENS, documents=stories)
    alone = measured(ALONE, model, cache, senses, tmp_path / "1" / "firings")
    first, second = map(json.loads, alone)
    groups = {"conditions", "calibration", "fidelity", "cooccurrence", "decomposability", "settings"}
    assert set(first) == groups | {"concepts", "senses"} and "truth" in second
    assert {"fixed_marginals", "lift", "dependence", "document_shift"} <= set(
        first["cooccurrence"]
    ) and "output_tokens" in first["fidelity"]
    for size in (2, 3):
        for told in on_ranks(size, measured, model, cache, senses, tmp_path / str(size) / "firings"):
            assert told == alone
        for path in (tmp_path / "1" / "firings").iterdir():
            assert (tmp_path / str(size) / "firings" / path.name).read_bytes() == path.read_bytes()
    assert sorted(part for rank in range(3) for part in deals(PARTS, Ranks(rank, 3))) == sorted(PARTS)


class Rows:
    """T rows as a split. kind: random; tied: only a few values, so that thresholds are met exactly; silent: nothing
    fires.
    """

    def __init__(self, kind: str, T: int):
        x = torch.randn(T, 16, generator=torch.Generator().manual_seed(3))
        x = {
            "random": x,
            "tied": (2 * x).round() / 2,
            "silent": 0 * x,
            "rising": x * torch.linspace(0.1, 10, T)[:, None],
        }[kind]
        self.x, self.n_tokens = x, T
        self.documents = self.tokens = self.positions = np.arange(T, dtype=np.int32)

    def rows(self, indices):
        return self.x[torch.as_tensor(indices)]

    def blocks(self, size):
        return iter(self.x.split(size))


def calibrated(ranks, screened: bool):
    """The calibration and thresholds by every rule on every kind of tokens, the batches so few that a rank may have
    none.
    """
    before, selection.matmul_dtype = selection.matmul_dtype, lambda *_: torch.bfloat16 if screened else torch.float32
    out = {}
    try:
        for kind in ("random", "tied", "silent", "rising"):
            for T in (60, 1000):
                # the other rules' thresholds are the first rank's alone
                for rule in ("rate", "per_latent", "eer") if kind == "random" else ("rate",):
                    sae = an_sae(16, 24)
                    if kind == "tied":
                        sae.W_enc.copy_(torch.eye(16, 24))
                        sae.b_enc.zero_()
                    calibration = calibrate(sae, Rows(kind, T), 64, rule=rule, ranks=ranks)
                    out[kind, T, rule] = (calibration, sae.threshold.numpy())
    finally:
        selection.matmul_dtype = before
    return out


def both_ways(ranks):
    return calibrated(ranks, False), calibrated(ranks, True)


def test_ranks_calibrate_as_one_process():
    alone = both_ways(ALONE)
    for size in (2, 3):
        for plainly, screened in on_ranks(size, both_ways):
            for key, (calibration, threshold) in plainly.items():
                assert calibration == alone[0][key][0], key
                assert np.array_equal(threshold, alone[0][key][1]), key
            # where candidates are found in bf16 their sums may be rounded otherwise
            for key, (calibration, threshold) in screened.items():
                np.testing.assert_allclose(threshold, alone[1][key][1], rtol=1e-5)
                assert calibration.l0 == pytest.approx(alone[1][key][0].l0, rel=1e-3), key
