"""A compare.json of an earlier version neither stops the explorer nor the report."""

import json

import pytest

from metasae.compare.catalogue import CATALOGUE, change
from metasae.compare.compare import compare
from metasae.compare.older import completed
from metasae.compare.verdict import headline
from metasae.explore.store.summary import overview_of
from metasae.report.report import write_report
from runs import write_arm

LACKING = [("pairs",), ("trained",), ("pairs", "trained"), ("verdict", "stale", "missing", "baseline")]


@pytest.fixture
def folder(tmp_path):
    for seed in range(2):
        write_arm(tmp_path, "solo", seed, fidelity__fvu=0.2 + 0.01 * seed)
        write_arm(tmp_path, "joint", seed, fidelity__fvu=0.22 + 0.012 * seed)
    return tmp_path


@pytest.mark.parametrize("keys", LACKING, ids=" and ".join)
def test_what_an_earlier_version_did_not_write_is_empty(folder, keys):
    whole = compare(folder)
    older = {key: value for key, value in whole.items() if key not in keys}
    (folder / "compare.json").write_text(json.dumps(older))
    overview = overview_of(folder, None, (), (), causal=False)
    assert overview["headline"] == headline(older)
    if "pairs" in keys:
        assert "Nothing is compared yet" in overview["headline"] and overview["pairs"] == {}
    elif "trained" in keys:
        assert "not known whether training was long enough" in overview["headline"]
        assert "fidelity.fvu" in overview["pairs"]["joint vs solo"]
    page = write_report(folder, older).read_text()
    assert overview["headline"] in page


def test_a_verdict_in_one_text_is_one_line_and_a_whole_comparison_stays_as_it_is(folder):
    whole = compare(folder)
    assert completed(whole) == whole
    older = {**whole, "verdict": "Joint against solo: lower FVU."}
    assert [line["text"] for line in completed(older)["verdict"]] == ["Joint against solo: lower FVU."]
    assert "Joint against solo: lower FVU." in write_report(folder, older).read_text()


def test_a_change_without_its_interval_or_its_seeds_is_still_written(folder):
    older = compare(folder)
    for entries in older["pairs"].values():
        for key, entry in entries.items():
            entries[key] = {name: entry[name] for name in ("a", "b", "difference", "percent")}
    (folder / "compare.json").write_text(json.dumps(older))
    overview = overview_of(folder, None, (), (), causal=False)
    assert overview["pairs"]["joint vs solo"]["fidelity.fvu"]["change"] == "+10.2%"
    assert write_report(folder, older).is_file()


def test_the_rounding_of_a_mean_is_no_change():
    quantity = next(q for q in CATALOGUE if not q.relative)
    values = [{"seed": 0, "a": 0.6, "b": 0.5}, {"seed": 1, "a": 0.4, "b": 0.5}]
    entry = {"difference": -2.8e-17, "percent": None, "percent_ci95": None, "ci95": [-2.0, 2.0], "values": values}
    assert change(quantity, entry) == "+0 pp [-200, +200]"
