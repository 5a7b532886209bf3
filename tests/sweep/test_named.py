"""Named sweeps: what they hold, and the two that compare at equal FVU, trained."""

import pytest
from tiny_sweeps import TINY

from metasae.recipe.recipe import Recipe
from metasae.sweep import named as module
from metasae.sweep import sweep
from metasae.sweep.cells import cell_hash
from metasae.sweep.named import ABLATIONS, named

pytestmark = pytest.mark.usefixtures("no_drawing")


@pytest.mark.parametrize("recipe", ["demo", "planted", "paper-gpt2-large", "modern-gpt2-small"])
@pytest.mark.parametrize("name", ABLATIONS)
def test_every_recipe_takes_every_named_sweep(name, recipe):
    base = Recipe.load(recipe)
    settings, _ = named(name, base)
    assert len({cell_hash(setting.recipe(base)) for setting in settings}) == len(settings) >= 2


def test_the_papers_grid():
    settings, _ = named("lambda2-sigma", Recipe.load("demo"))
    assert [tuple(setting.values.values()) for setting in settings] == [
        (a, b) for a in (0.1, 0.3, 1.0) for b in (0.3, 1.0, 3.0)
    ]


def test_kinds_share_one_solo_and_are_read_at_its_fvu(tmp_path):
    result = sweep("planted", named="kinds", seeds=1, out=tmp_path / "a", overrides=TINY, show=False)
    kinds = result["equal_fvu"]["kinds"]
    assert list(kinds) == ["solo", "decomposability", "ortsae", "c2r", "cofiring", "matryoshka"]
    assert result["equal_fvu"]["target"] == {"kind": "solo", "k": 3} and not result["equal_fvu"]["not_done"]
    assert result["equal_fvu"]["k"]["ortsae"] == [3, 4, 5]
    assert len({cell["saes"]["solo-s0"] for cell in result["cells"]}) == 1
    own = next(cell for cell in result["cells"] if cell["kind"] == "solo" and cell["setting"]["sae.k"] == 3)
    # solo at the recipe's k is its own baseline
    assert own["saes"]["joint-s0"] == own["saes"]["solo-s0"] and own["differences"]["fidelity.fvu"]["difference"] == 0
    for rows in list(kinds.values())[1:]:
        entry = rows["cooccurrence.mean_abs_phi"]
        assert entry["interpolation_error"] >= 0 and set(entry["brackets"]) == {"0"}
        assert entry["n_seeds"] == sum(bracket is not None for bracket in entry["brackets"].values())
        assert "fidelity.fvu" not in rows
    by_k = result["equal_fvu"]["equal_k"]
    assert "solo" not in by_k and list(by_k["ortsae"]) == ["3", "4", "5"]
    ortsae, solo = (
        next(cell for cell in result["cells"] if cell["kind"] == kind and cell["setting"]["sae.k"] == 4)
        for kind in ("ortsae", "solo")
    )
    key = "cooccurrence.mean_abs_phi"
    assert by_k["ortsae"]["4"][key]["difference"] == pytest.approx(ortsae["means"][key] - solo["means"][key])
    table = (tmp_path / "a/sweep.md").read_text()
    assert "## Against solo with the same k" in table
    assert "## At the FVU of solo with k = 3" in table and "| matryoshka | 3, 4, 5 |" in table


@pytest.mark.drawn
def test_joint_beside_solo_of_lower_k(tmp_path):
    overrides = TINY | {"sae.k": 6, "train.lambda2": 3.0}
    result = sweep("planted", named="k", seeds=1, out=tmp_path / "a", overrides=overrides, show=False)
    assert result["equal_fvu"]["baseline"] == "curve" and result["equal_fvu"]["k"] == {"joint": [6], "solo": [4, 5, 6]}
    assert (tmp_path / "a/figures/pareto.png").stat().st_size > 5000
    assert "Differences are target - curve" in (tmp_path / "a/sweep.md").read_text()


@pytest.mark.drawn
def test_kinds_that_differ_in_more_than_k_are_read_by_name(tmp_path, monkeypatch):
    def three(base):
        return [setting for setting in every(base) if setting.kind in ("solo", "atomic", "atomic, higher k")]

    every = module._atomic
    monkeypatch.setattr(module, "_atomic", three)
    sweep("planted", named="atomic", seeds=1, out=tmp_path / "a", overrides=TINY, show=False)
    assert (tmp_path / "a/figures/pareto.png").stat().st_size > 5000
    table = (tmp_path / "a/sweep.md").read_text()
    assert "Change of each kind against solo" in table
    assert "| 2 | atomic |" in table and "| 3 | atomic, higher k |" in table
