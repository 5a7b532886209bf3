"""Runs in Python: what `metasae.run` and `measure` return, and their SAEs, table and report."""

import sys

import pytest
import torch

import metasae
from drawing import undrawn

SMALL = {
    "planted.d": 24,
    "planted.independent": 30,
    "planted.words": 4,
    "sae.n": 48,
    "sae.k": 3,
    "meta.n": 8,
    "meta.k": 2,
    "train.tokens": 3000,
    "train.batch": 128,
    "measure.tokens": 2000,
    "measure.calibration_tokens": 1000,
    "measure.critics": 1,
    "measure.meta_steps": 10,
    "arms": ["solo", "joint"],
    "seeds": [0, 1],
}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    with undrawn():
        return metasae.run("planted", out=tmp_path_factory.mktemp("runs") / "a", overrides=SMALL, show=False)


def test_a_run_has_its_saes_by_arm_and_seed(run):
    assert isinstance(run, metasae.Run)
    assert list(run.saes) == [("solo", 0), ("solo", 1), ("joint", 0), ("joint", 1)]
    sae = run.saes["joint", 1]
    assert torch.equal(sae.W_dec, metasae.load(run.folder, arm="joint", seed=1).W_dec) and sae is run.saes["joint", 1]
    assert repr(sae).startswith("SAE(joint-s1: 48 latents of width 24, batchtopk, of a planted world, k 3, threshold ")
    assert ("solo", 1) in run.saes and ("solo", 2) not in run.saes
    for key, words in (("joint", "'joint' is 2 SAEs"), (("joint", 7), r"no SAE \('joint', 7\)"), ("jont", "no SAE")):
        with pytest.raises(metasae.UserError, match=words):
            run.saes[key]
    assert [arm.label for arm in run.arms if arm.has_meta] == ["joint-s0", "joint-s1"]


def test_a_run_is_opened_again_from_its_folder(run, tmp_path):
    again = metasae.Run(run.folder)
    assert again.comparison["arms"] == run.comparison["arms"] and again.report() == run.folder / "report.html"
    with pytest.raises(metasae.UserError, match="is not a run folder"):
        metasae.Run(tmp_path / "nowhere")


def test_the_report_is_made_where_it_is_missing(run):
    (run.folder / "report.html").unlink()
    with undrawn():
        assert metasae.Run(run.folder).report().read_text().startswith("<!")


def test_a_table_with_and_without_pandas(run, monkeypatch):
    pandas = pytest.importorskip("pandas")
    frame = run.table()
    assert isinstance(frame, pandas.DataFrame) and list(frame.columns) == ["solo", "joint", "better"]
    means = run.comparison["arms"]["joint"]["means"]
    assert means["fidelity.fvu"] in frame["joint"].tolist()
    monkeypatch.setattr("metasae.jobs.results.find_spec", lambda name: None)
    plain = run.table()
    assert plain.columns[0] == "measure" and plain["joint"] == [float(value) for value in frame["joint"]]
    assert len(plain) == len(frame) == len(repr(plain).splitlines()) - 1
    with pytest.raises(KeyError, match="no column 'loss', only measure, solo, joint, better"):
        plain["loss"]


def test_a_run_shows_itself(run, tmp_path):
    text = repr(run)
    assert text.splitlines()[0].endswith("solo-s0, solo-s1, joint-s0, joint-s1)") and len(text) < 4000
    page = run._repr_html_()
    assert "<table>" in page and run.comparison["verdict"][0]["text"][:20] in page.replace("&#x27;", "'")
    (tmp_path / "arms" / "solo-s0").mkdir(parents=True)
    empty = metasae.Run(tmp_path)
    assert "nothing is measured yet" in empty._repr_html_() and repr(empty).endswith("solo-s0)")


def test_measure_takes_one_path(run, tmp_path):
    with undrawn():
        measured = metasae.measure(str(run.folder / "arms" / "joint-s0"), out=tmp_path / "again", show=False)
    assert list(measured.saes) == [("joint", 0)]
    assert measured.arms[0].measures()["fidelity"]["fvu"] == run.arms[2].measures()["fidelity"]["fvu"]
    with pytest.raises(metasae.UserError, match="no SAE at 'nowhere'"):
        metasae.measure("nowhere", out=tmp_path / "no", show=False)


def test_importing_metasae_imports_no_torch():
    import subprocess

    code = "import sys, metasae; assert 'torch' not in sys.modules and 'Run' in dir(metasae)"
    subprocess.run([sys.executable, "-c", code], check=True)
