"""Searches: seeded, resumed with the same draws, cells found again, refused settings; and a copy in a storage."""

import sys
from dataclasses import replace

import optuna
import pytest
from tiny_sweeps import TINY, entries, without_machine

from metasae.errors import Interrupted, UserError
from metasae.sweep import sweep
from metasae.sweep import worker as worker_module
from metasae.sweep.folder import SweepFolder
from metasae.sweep.plan import read_plan
from metasae.sweep.search import draw, study_of

pytestmark = pytest.mark.usefixtures("no_drawing")


SPACE = ["train.lambda2=0.03..3:log", "sae.k=2..4", "meta.input=raw,token"]


def tiny(out, n, space=SPACE, **options):
    return sweep(
        "planted",
        space,
        search=n,
        out=out,
        seeds=1,
        overrides=TINY | {"arms": ["solo", "joint"]},
        show=False,
        **options,
    )


def test_a_search_draws_the_same_cells_whether_or_not_it_was_stopped(tmp_path, monkeypatch):
    whole = tiny(tmp_path / "whole", 5)
    settings = [cell["setting"] for cell in whole["cells"]]
    assert all(0.03 <= setting["train.lambda2"] <= 3 and setting["sae.k"] in (2, 3, 4) for setting in settings)
    assert sum(len(cell["trials"]) for cell in whole["cells"]) == len(settings) == 5
    real, calls = worker_module.measure_arm, []

    def stop_in_the_middle(*arguments):
        calls.append(1)
        if len(calls) == 4:
            raise Interrupted("stopped by a test")
        return real(*arguments)

    monkeypatch.setattr(worker_module, "measure_arm", stop_in_the_middle)
    with pytest.raises(Interrupted):
        tiny(tmp_path / "cut", 5)
    assert without_machine(tiny(tmp_path / "cut", 5)) == without_machine(whole)


def test_more_trials_may_be_asked_for(tmp_path):
    first = tiny(tmp_path / "a", 2)
    more = tiny(tmp_path / "a", 3)
    assert [cell["setting"] for cell in more["cells"]][:2] == [cell["setting"] for cell in first["cells"]] and len(
        more["cells"]
    ) == 3


def test_a_cell_drawn_twice_is_trained_once_and_told_twice(tmp_path):
    result = tiny(tmp_path / "a", 4, ["meta.input=raw,token"])
    assert sum(len(cell["trials"]) for cell in result["cells"]) == 4 and len(result["cells"]) <= 2
    folder = SweepFolder(tmp_path / "a")
    study = study_of(read_plan(folder), folder.cells())
    assert all(trial.state.name == "COMPLETE" for trial in study.get_trials())
    by_cell = {number: cell["means"]["fidelity.fvu"] for cell in result["cells"] for number in cell["trials"]}
    assert [trial.values[0] for trial in study.get_trials()] == [by_cell[number] for number in range(4)]


def test_what_the_recipe_does_not_take_is_refused_and_the_search_goes_on(tmp_path):
    result = tiny(tmp_path / "a", 4, ["sae.k=30..34", "train.lambda2=0.1..1"])
    states = {cell["setting"]["sae.k"]: cell["state"] for cell in result["cells"]}
    assert all((state == "failed") == (k > 32) for k, state in states.items()) and len(result["cells"]) == 4
    assert all("more than n" in why for why in result["failed"].values())


def test_a_cell_whose_worker_died_when_it_was_drawn_is_not_lost(tmp_path):
    whole = tiny(tmp_path / "whole", 2)
    tiny(tmp_path / "a", 1)
    folder = SweepFolder(tmp_path / "a")
    plan = replace(read_plan(folder), search=replace(read_plan(folder).search, trials=2))
    assert draw(folder, plan) and not draw(folder, plan)
    assert [(cell.trials, cell.state) for cell in folder.cells()] == [([0], "done"), ([1], "open")]
    assert [cell["setting"] for cell in tiny(tmp_path / "a", 2)["cells"]] == [
        cell["setting"] for cell in whole["cells"]
    ]


def test_a_storage_is_given_a_copy_of_the_cells(tmp_path):
    url = f"sqlite:///{tmp_path}/study.db"

    def grid(out, values, url):
        return sweep(
            "planted", entries({"train.lambda2": values}), out=out, seeds=1, overrides=TINY, storage=url, show=False
        )

    result = grid(tmp_path / "a", [0.3, 3.0], url)
    assert len(result["cells"]) == 2 and url not in (tmp_path / "a/plan.json").read_text()
    study = optuna.load_study(study_name=read_plan(SweepFolder(tmp_path / "a")).study, storage=url)
    assert [trial.params for trial in study.get_trials()] == [{"train.lambda2": 0.3}, {"train.lambda2": 3.0}]
    assert study.get_trials()[0].values == [result["cells"][0]["means"][key] for key in result["objectives"]]
    # a later call replaces the copy
    grid(tmp_path / "a", [1.0], url)
    (name,) = optuna.get_all_study_names(url)
    assert len(optuna.load_study(study_name=name, storage=url).get_trials()) == 3
    with pytest.raises(UserError, match="the storage cannot be used"):
        grid(tmp_path / "b", [0.3], "nonsense://x")
    assert not (tmp_path / "b").exists()


def test_tables_are_categories(tmp_path):
    result = sweep(
        "planted",
        entries({"train.penalties": [{}, {"ortsae": 0.5}]}),
        out=tmp_path / "a",
        seeds=1,
        overrides=TINY,
        show=False,
    )
    assert [cell["setting"] for cell in result["cells"]] == [
        {"train.penalties": penalties} for penalties in ({}, {"ortsae": 0.5})
    ]
    assert all(cell["state"] == "done" for cell in result["cells"])


def test_only_searches_and_storages_need_optuna(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    monkeypatch.delitem(sys.modules, "metasae.sweep.search")
    for options in ({"search": 1}, {"grid": ["train.lambda2=0.3"], "storage": f"sqlite:///{tmp_path}/study.db"}):
        with pytest.raises(UserError, match=r"need Optuna, which is not installed: pip install -e '\.\[search\]'"):
            sweep("planted", out=tmp_path / "a", seeds=1, overrides=TINY, show=False, **options)
    assert not list(tmp_path.iterdir())
    result = sweep("planted", ["train.lambda2=0.3"], out=tmp_path / "a", seeds=1, overrides=TINY, show=False)
    assert result["cells"][0]["state"] == "done"
