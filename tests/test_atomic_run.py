"""A small run with the arm `atomic`: what became of its births, from training to the report."""

import contextlib
import io
import json

import pytest

import metasae
from drawing import undrawn
from metasae.jobs.conclude import print_conclusion

SMALL = {
    "planted.d": 24, "planted.independent": 30, "planted.words": 4,
    "sae.n": 48, "sae.k": 3, "meta.n": 6, "train.tokens": 256 * 80, "train.batch": 256, "train.dead_after": 5000,
    "train.births": {"window": 8, "every": 0.1, "share": 0.1, "firings": 2, "two_points": 0.2},
    "measure.tokens": 4000, "measure.calibration_tokens": 2000, "measure.critics": 1, "measure.meta_steps": 20,
    "arms": ["solo", "atomic"], "seeds": 1,
}  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    with undrawn():
        return metasae.run("planted", out=tmp_path_factory.mktemp("runs") / "a", overrides=SMALL, show=False)


def test_every_birth_has_its_fate(run):
    births = json.loads((run.folder / "arms" / "atomic-s0" / "births.json").read_text())
    assert births["records"]
    assert births["stopped_at"] is None or births["stopped_at"] > births["records"][-1]["step"]
    for record in births["records"]:
        assert record["promised"] > 0 and 0 <= record["rate"] <= 1 and 0 <= record["parent_rate"] <= 1
        assert record["alive"] == (record["rate"] > 0 and record["replaced_at"] is None)
    assert not (run.folder / "arms" / "solo-s0" / "births.json").exists()


def test_measures_and_comparison_have_the_summary(run):
    measures = json.loads((run.folder / "arms" / "atomic-s0" / "measures.json").read_text())["births"]
    births = json.loads((run.folder / "arms" / "atomic-s0" / "births.json").read_text())
    assert "fates" not in measures and measures["stopped_at"] == births["stopped_at"]
    assert measures["made"] == len(births["records"])
    assert measures["alive"] == sum(record["alive"] for record in births["records"])
    assert run.comparison["births"] == {"atomic": {"0": measures}}


def test_the_report_and_the_terminal_say_it(run):
    births = run.comparison["births"]["atomic"]["0"]
    page = (run.folder / "report.html").read_text()
    assert "<h2>Births</h2>" in page and f"<td>{births['made']}</td><td>{births['alive']}</td>" in page
    said = f"Births of atomic (seed 0): {births['made']} made, {births['alive']} newborns alive at the end"
    assert said in (run.folder / "compare.md").read_text()
    with contextlib.redirect_stdout(io.StringIO()) as out:
        print_conclusion({**run.comparison, "run": str(run.folder), "report": "report.html"})
    assert said in " ".join(out.getvalue().split())
