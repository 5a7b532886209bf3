"""Side effects over matched latents: which are drawn, and that a run's numbers reach its comparison."""

import json

import numpy as np
import pytest
import torch
from fakes import random_sae
from scipy.sparse import csr_array

import metasae
from metasae.measures.effect.matched_effects import Side, draw_matched
from metasae.measures.firing.firings import Firings

pytestmark = pytest.mark.usefixtures("no_drawing")


def side(sae, fires_TN):
    table = csr_array(fires_TN.astype(np.float32))
    zeros = np.zeros(len(fires_TN), np.int32)
    return Side(
        sae,
        Firings(
            table.indptr.astype(np.int64),
            table.indices.astype(np.int32),
            table.data,
            table.shape[1],
            zeros,
            zeros,
            zeros,
        ),
    )


def test_partners_are_rows_of_the_other_sae_that_fire_and_are_alike():
    a, b = random_sae(d=24, n=12, seed=0), random_sae(d=24, n=12, seed=0)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(1))
    b.W_dec.data.copy_(a.W_dec.data[order])
    fires = np.random.default_rng(0).random((50, 12)) < 0.4
    fires[:, 3] = False
    fires_b = np.random.default_rng(1).random((50, 12)) < 0.4
    pairs = draw_matched(side(a, fires), side(b, fires_b), 100)
    assert sorted(pairs[:, 0]) == [i for i in range(12) if i != 3]
    assert all(int(order[j]) == i for i, j in pairs)
    few = draw_matched(side(a, fires), side(b, fires_b), 4, seed=5)
    assert len(few) == 4 and {tuple(pair) for pair in few} < {tuple(pair) for pair in pairs}
    assert np.array_equal(few, draw_matched(side(a, fires), side(b, fires_b), 4, seed=5))


def test_nothing_live_gives_no_pair():
    sae = random_sae(d=8, n=4, seed=0)
    assert draw_matched(side(sae, np.zeros((5, 4), bool)), side(sae, np.ones((5, 4), bool)), 3).shape == (0, 2)


@pytest.fixture
def recipe(build, stories, tmp_path):
    path = tmp_path / "stories.jsonl"
    path.write_text("\n".join(json.dumps({"text": story}) for story in stories))
    return {
        "model": {"path": str(build("gpt2")), "dtype": "fp32"},
        "hook": {"point": "blocks.1.hook_resid_pre"},
        "text": {"source": str(path), "context": 16, "calibration_share": 0.2, "evaluation_share": 0.2},
        "sae": {"n": 48, "k": 3},
        "meta": {"n": 8, "k": 2},
        "train": {
            "tokens": 3000,
            "batch": 128,
            "n_primary_steps": 4,
            "n_meta_steps": 2,
            "dead_after": 1000,
            "lambda2": 5.0,
        },
        "measure": {
            "tokens": 1500,
            "calibration_tokens": 1000,
            "output_tokens": 0,
            "meta_steps": 5,
            "critics": 1,
            "shifts": 0,
            "side_effects": 6,
        },
        "arms": ["solo", "control", "joint"],
        "seeds": 2,
    }


def test_a_run_that_asks_for_them_has_them_in_its_comparison(recipe, tmp_path):
    result = metasae.run(recipe, out=tmp_path / "run", show=False).comparison
    across = json.loads((tmp_path / "run" / "across.json").read_text())
    effects = across["joint-s1"]["side_effects"]
    assert effects["with"] == "solo-s1" and effects["n_matches"] == 6 and effects["spill_a"] is not None
    assert "side_effects" not in across["solo-s0"]
    entry = result["pairs"]["joint vs solo"]["side_effects.spill"]
    assert (
        entry["n_seeds"] == 2
        and entry["values"][1]["a"] == effects["spill_a"]
        and entry["values"][1]["b"] == effects["spill_b"]
    )
    assert "side_effects.spill" not in result["pairs"]["control vs solo"]
