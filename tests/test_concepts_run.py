"""Concepts in a run from text to comparison: drawn from the text, from tagged senses and from a user's own file."""

import json
import shutil

import pytest

import metasae
from metasae.arms import source
from metasae.data.model.host import Host
from metasae.errors import UserError

pytestmark = pytest.mark.usefixtures("no_drawing")

KEYS = {
    "best_f1", "best_recall", "best_precision", "probe5_f1", "ceiling_f1", "blended", "by_family", "n", "n_serving",
    "leave_one_out",
}  # fmt: skip


def write_lines(path, lines):
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(path)


@pytest.fixture
def senses(tmp_path):
    """Forty sentences with each of two senses of a word."""
    words = {"river": "gulls harbour", "money": "counted sacks"}
    lines = [
        {"word": "mill", "sense": sense, "before": f"{n} {words[sense]} the", "target": "mill", "after": ""}
        for n in range(40)
        for sense in words
    ]
    return write_lines(tmp_path / "mill.jsonl", lines)


@pytest.fixture
def labels(tmp_path):
    water = [{"concept": "water", "before": f"{n} past the", "target": "river", "after": "mill"} for n in range(20)]
    snow = [
        {"concept": "snow", "family": "weather", "before": f"{n}", "target": "Snow", "after": "fell"} for n in range(20)
    ]
    return write_lines(tmp_path / "own.jsonl", water + snow)


@pytest.fixture
def recipe(build, stories, tmp_path):
    text = write_lines(tmp_path / "stories.jsonl", [{"text": story} for story in stories])

    def make(family="gpt2", **measure):
        return {
            "model": {"path": str(build(family)), "dtype": "fp32"},
            "hook": {"point": "blocks.1.hook_resid_pre"},
            "text": {"source": text, "context": 32, "calibration_share": 0.2, "evaluation_share": 0.3},
            "sae": {"n": 64, "k": 4},
            "meta": {"n": 8, "k": 2},
            "train": {"tokens": 4000, "batch": 128},
            "measure": {
                "tokens": 3000, "calibration_tokens": 1000, "output_tokens": 0, "meta_steps": 5, "critics": 1,
                "shifts": 0,
                "lift": False, "pursuit_k": 0, "explorer": False, "across": False, **measure,
            },
            "arms": ["solo", "joint"],
            "seeds": [0],
        }  # fmt: skip

    return make


def measures_of(out, arm="solo"):
    return json.loads((out / "arms" / f"{arm}-s0" / "measures.json").read_text())


@pytest.mark.parametrize("family", ["gpt2", "bert"])
def test_concepts_of_all_three_kinds(recipe, senses, labels, tmp_path, family):
    out = tmp_path / "runs" / "a"
    result = metasae.run(recipe(family, senses=senses, labels=labels), out=out, show=False).comparison
    measures = measures_of(out)
    concepts = measures["concepts"]
    assert set(concepts) == KEYS
    assert concepts["n"] == sum(of_family["n"] for of_family in concepts["by_family"].values()) > 20
    assert {"token", "bigram", "sense", "yours", "weather"} <= set(concepts["by_family"])
    assert concepts["by_family"]["sense"]["n"] == 2 and concepts["by_family"]["weather"]["n"] == 1
    assert 0 < concepts["best_f1"] < concepts["ceiling_f1"] <= 1
    without = concepts["leave_one_out"]
    assert set(without) == KEYS - {"by_family", "n", "n_serving", "ceiling_f1", "leave_one_out"}
    assert all(len(values) == 8 for values in without.values())
    assert measures["settings"]["labels"] == labels and measures["conditions"]["labels"]
    entry = result["pairs"]["joint vs solo"]["concepts.best_f1"]
    assert entry["difference"] is not None and "concepts.ceiling_f1" in result["arms"]["solo"]["means"]


def test_a_change_of_either_key_measures_again(recipe, labels, tmp_path):
    out = tmp_path / "runs" / "a"
    values = recipe(concepts=5)
    metasae.run(values, out=out, show=False)
    first = measures_of(out)["concepts"]
    assert max(of_family["n"] for of_family in first["by_family"].values()) <= 5
    metasae.run(values, out=out, overrides={"measure.concepts": 7}, show=False)
    assert measures_of(out)["concepts"]["n"] > first["n"]
    metasae.run(values, out=out, overrides={"measure.concepts": 5, "measure.labels": labels}, show=False)
    assert measures_of(out)["concepts"]["n"] == first["n"] + 2
    metasae.run(values, out=out, overrides={"measure.concepts": 0}, show=False)
    assert "concepts" not in measures_of(out)


def test_the_tokenizer_alone_is_loaded_where_no_part_needs_the_model(recipe, tmp_path, monkeypatch):
    out = tmp_path / "runs" / "a"
    metasae.run(recipe(), out=out, show=False)
    before = measures_of(out)["concepts"]
    for folder in (out / "arms").iterdir():
        (folder / "measures.json").unlink()
    loaded = []
    monkeypatch.setattr(Host, "load", lambda *arguments: pytest.fail("the model was loaded"))
    monkeypatch.setattr(source, "load_tokenizer", _counting(source.load_tokenizer, loaded))
    metasae.run(recipe(), out=out, show=False)
    assert measures_of(out)["concepts"] == before and len(loaded) == 1


def _counting(function, calls):
    def counted(*arguments):
        calls.append(arguments)
        return function(*arguments)

    return counted


def test_measuring_an_sae_that_is_there_already(recipe, labels, tmp_path):
    out = tmp_path / "runs" / "a"
    metasae.run(recipe(), out=out, show=False)
    metasae.measure([out], tmp_path / "again", show=False)
    assert measures_of(tmp_path / "again")["concepts"] == measures_of(out)["concepts"]
    metasae.measure([out], tmp_path / "own", overrides={"measure.labels": labels}, show=False)
    assert measures_of(tmp_path / "own")["concepts"]["n"] == measures_of(out)["concepts"]["n"] + 2


def test_bad_files_of_labels(recipe, tmp_path):
    with pytest.raises(UserError, match=r"measure\.labels: no file or folder .*; give JSONL with concept, before"):
        metasae.run(recipe(labels=str(tmp_path / "nowhere.jsonl")), out=tmp_path / "a", show=False)
    bad = write_lines(tmp_path / "bad.jsonl", [{"concept": "x", "before": "", "target": "y"}])
    with pytest.raises(UserError, match=r"bad\.jsonl, line 1 has no key 'after'"):
        metasae.run(recipe(labels=bad), out=tmp_path / "a", show=False)


def test_a_planted_world_has_no_concepts(tmp_path):
    small = {
        "planted": {"d": 16, "independent": 16}, "sae.n": 24, "sae.k": 3, "meta.n": 6, "train.tokens": 4000,
        "train.batch": 500, "measure.tokens": 2000, "measure.calibration_tokens": 1000, "measure.meta_steps": 5,
        "measure.critics": 1,
        "measure.shifts": 0, "measure.pursuit_k": 0, "measure.lift": False, "arms": ["solo"], "seeds": 1,
    }  # fmt: skip
    metasae.run("planted", out=tmp_path / "a", overrides=small, show=False)
    assert "concepts" not in measures_of(tmp_path / "a") and "truth" in measures_of(tmp_path / "a")
    shutil.rmtree(tmp_path / "a")
