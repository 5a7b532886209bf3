"""The best recipe: new seeds, documents that were never judged on, and a harvested sweep from text to that recipe."""

import json

import pytest
import torch
from tiny_sweeps import contents, entries, without_machine

import metasae
from metasae.data.cache.cache import ActivationCache
from metasae.data.text.text import split_of
from metasae.recipe.recipe import Recipe
from metasae.sweep import sweep
from metasae.sweep import worker as worker_module
from metasae.sweep.folder import SweepFolder
from metasae.sweep.plan import read_plan
from metasae.sweep.results import other_documents, write_best
from sources import STORIES

pytestmark = pytest.mark.usefixtures("no_drawing")


@pytest.mark.parametrize("name", ["demo", "local", "paper-gpt2-large", "modern-gpt2-small", "tiny-gpt2"])
def test_no_document_is_judged_on_twice(name):
    recipe = Recipe.load(name)
    values, note = other_documents(recipe)
    other = Recipe.load(recipe.model_dump(mode="json"), values)
    documents = [f"{number} {STORIES[number % 3]}" for number in range(4000)]
    judged, again = (
        {document for document in documents if split_of(document, one.text) == "evaluation"} for one in (recipe, other)
    )
    assert "did not measure on" in note and not judged & again
    assert len(again) == pytest.approx(recipe.text.evaluation_share * 4000, rel=0.15)
    assert sum(split_of(document, other.text) == "train" for document in documents) > 0.3 * 4000


def test_where_there_are_no_other_documents_the_note_says_so():
    wide = Recipe.load("demo", {"text.evaluation_share": 0.45})
    assert other_documents(wide)[0] == {} and "are the same" in other_documents(wide)[1]
    assert other_documents(Recipe.load("planted")) == ({}, "The planted world and its evaluation tokens are the same.")


@pytest.fixture
def values(build, stories, tmp_path):
    path = tmp_path / "stories.jsonl"
    path.write_text("\n".join(json.dumps({"text": story}) for story in stories))
    return {
        "model": {"path": str(build("gpt2")), "dtype": "fp32"},
        "hook": {"point": "blocks.1.hook_resid_pre"},
        "text": {"source": str(path), "context": 32, "calibration_share": 0.2, "evaluation_share": 0.2},
        "sae": {"n": 48, "k": 4},
        "meta": {"n": 6, "k": 2},
        "train": {"tokens": 2400, "batch": 200, "n_primary_steps": 4, "n_meta_steps": 2, "lr": 5e-3},
        "measure": {"tokens": 1500, "calibration_tokens": 1000, "output_tokens": 300, "meta_steps": 5, "critics": 1},
        "arms": ["solo", "joint"],
    }


def test_one_harvest_serves_the_sweep_and_a_moved_one_goes_on(values, tmp_path, monkeypatch):
    harvests = []
    real = worker_module.Source.open
    monkeypatch.setattr(
        worker_module.Source, "open", lambda self, tokens: harvests.append(tokens) or real(self, tokens)
    )
    grid = entries({"train.lambda2": [0.3, 3.0], "train.tokens": [1200, 2400]})
    result = sweep(values, grid, seeds=1, out=tmp_path / "runs/a", show=False)
    assert [tokens["train"] for tokens in harvests] == [2400] and len(
        list((tmp_path / "runs/activations").iterdir())
    ) == 1
    assert all("fidelity.ce_delta" in cell["means"] for cell in result["cells"])
    # one solo for each number of training tokens
    assert len({cell["saes"]["solo-s0"] for cell in result["cells"]}) == 2
    alone = metasae.run(
        tmp_path / "runs/a" / result["cells"][0]["folder"] / "recipe.toml", out=tmp_path / "runs/alone", show=False
    ).comparison
    assert alone["arms"]["joint"]["means"]["fidelity.fvu"] == result["cells"][0]["means"]["fidelity.fvu"]
    harvests.clear()
    before = contents(tmp_path / "runs/a")
    (tmp_path / "moved").mkdir()
    (tmp_path / "runs/a").rename(tmp_path / "moved/a")
    for path in (tmp_path / "moved/a/saes").glob("joint-*/measures.json"):
        path.unlink()
    for path in (tmp_path / "moved/a/cells").glob("*/cell.json"):
        path.write_text(path.read_text().replace('"done"', '"open"'))
    assert without_machine(sweep(values, grid, seeds=1, out=tmp_path / "moved/a", show=False)) == without_machine(
        result
    )
    assert contents(tmp_path / "moved/a") == before and not harvests
    # longer cells that are added later have their tokens harvested
    longer = sweep(values, ["train.lambda2=0.3", "train.tokens=4800"], seeds=1, out=tmp_path / "moved/a", show=False)
    assert [tokens["train"] for tokens in harvests] == [4800] and longer["cells"][-1]["state"] == "done"
    cache = ActivationCache(json.loads((tmp_path / "moved/a/harvest.json").read_text())["cache"])
    assert cache.split("train").n_tokens == 4800
    harvests.clear()
    # and where the cache is gone it is harvested again, with the same rows
    (tmp_path / "moved/activations").rename(tmp_path / "gone")
    more = sweep(values, grid, seeds=[1], out=tmp_path / "moved/a", show=False)
    assert len(harvests) == 1 and more["cells"][0]["seeds"] == [0, 1]


def test_the_best_cell_is_confirmed_on_other_documents(values, tmp_path):
    result = sweep(values, ["train.lambda2=0.3,3.0"], seeds=2, out=tmp_path / "runs/a", show=False)
    folder = SweepFolder(tmp_path / "runs/a")
    best = next(cell for cell in result["cells"] if cell["best"])
    chosen = write_best(folder, read_plan(folder), result)
    recipe = Recipe.load(tmp_path / "runs/a/best.toml")
    assert (
        chosen["cell"] == best["name"]
        and recipe.train.lambda2 == best["setting"]["train.lambda2"]
        and recipe.seeds == (2, 3, 4)
    )
    assert (
        recipe.text.calibration_share == pytest.approx(0.4)
        and recipe.measure.across
        and recipe.measure.output_tokens == 300
    )
    confirmed = metasae.run(
        recipe.model_copy(update={"seeds": (2,)}), out=tmp_path / "runs/confirmed", show=False
    ).comparison
    compared = json.loads((tmp_path / "runs/a" / best["folder"] / "compare.json").read_text())
    assert confirmed["conditions"]["data"] != compared["conditions"]["data"]
    assert not torch.equal(
        *(
            metasae.SAE.load(next(place.glob("**/solo-s*/primary"))).b_dec
            for place in (tmp_path / "runs/confirmed", folder.path)
        )
    )
