"""Whole sweeps on a planted world: what is trained once, what is skipped, what fails and goes on, and what is told."""

import json
import os
import shutil
import signal

import pytest
import torch
from tiny_sweeps import TINY, contents, entries, without_machine, workers_of
from typer.testing import CliRunner

import metasae
from metasae.cli import app
from metasae.compare.compare import compare
from metasae.errors import Interrupted, UserError
from metasae.recipe.recipe import Recipe
from metasae.report.report import write_report
from metasae.sweep import launch, sweep
from metasae.sweep import worker as worker_module
from metasae.sweep.folder import SweepFolder
from metasae.sweep.plan import light, read_plan
from metasae.train.trainer import Trainer

pytestmark = pytest.mark.usefixtures("no_drawing")

GRID = {"train.lambda2": [0.3, 3.0], "train.sigma_sq": [0.3, 1.0]}


def tiny(out, grid=GRID, **options):
    grid = options.pop("grid_", grid)
    options = {"seeds": 2, "overrides": TINY, **options}
    return sweep("planted", grid and entries(grid), out=out, show=False, **options)


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """A finished sweep of four cells, two seeds: (its folder, its result). Not to be changed."""
    out = tmp_path_factory.mktemp("sweeps") / "grid"
    return out, tiny(out)


def stamps(folder):
    return {
        path: path.stat().st_mtime_ns for path in (folder / "saes").rglob("*") if path.is_file() and path.name != "lock"
    }


def test_solo_and_control_are_trained_once_per_seed(done):
    out, result = done
    assert [cell["setting"] for cell in result["cells"]] == [
        {"train.lambda2": a, "train.sigma_sq": b} for a in (0.3, 3.0) for b in (0.3, 1.0)
    ]  # fmt: skip
    arms = [path.name.split("-")[0] for path in (out / "saes").iterdir()]
    assert {arm: arms.count(arm) for arm in set(arms)} == {"solo": 2, "control": 2, "joint": 8}
    assert all(len(workers) == 1 for workers in workers_of(out).values())
    assert (
        len({cell["saes"]["solo-s0"] for cell in result["cells"]}) == 1
        and len({cell["saes"]["joint-s0"] for cell in result["cells"]}) == 4
    )


def test_a_cell_is_what_a_run_of_its_recipe_gives(done, tmp_path):
    out, result = done
    cell = out / result["cells"][3]["folder"]
    alone = metasae.run(cell / "recipe.toml", out=tmp_path / "alone", show=False).comparison
    assert alone["arms"] == json.loads((cell / "compare.json").read_text())["arms"]
    one, other = (metasae.SAE.load(folder / "arms/joint-s1/primary") for folder in (cell, tmp_path / "alone"))
    assert torch.equal(one.W_dec, other.W_dec) and torch.equal(one.W_enc, other.W_enc)
    assert (cell / "arms/control-s1/metrics.jsonl").exists()


def test_a_cell_is_a_run_folder(done, tmp_path):
    out, result = done
    shutil.copytree(out, tmp_path / "copy", symlinks=True)
    cell = tmp_path / "copy" / result["cells"][0]["folder"]
    before = stamps(tmp_path / "copy")
    again = metasae.run(cell / "recipe.toml", out=cell, show=False).comparison
    assert again["pairs"].keys() == {"joint vs solo", "control vs solo"}
    assert stamps(tmp_path / "copy") == before


@pytest.mark.slow
@pytest.mark.drawn
def test_a_report_can_be_written_for_a_cell(done, tmp_path):
    out, result = done
    shutil.copytree(out, tmp_path / "copy", symlinks=True)
    copied = tmp_path / "copy" / result["cells"][0]["folder"]
    assert write_report(copied, compare(copied)).stat().st_size > 50_000


def test_what_is_told(done):
    out, result = done
    written = json.loads((out / "sweep.json").read_text())
    assert without_machine(written) == without_machine(result)
    assert written["front"] and written["best"] in written["front"] and not written["failed"]
    entry = written["cells"][0]["differences"]["fidelity.fvu"]
    assert entry["n_seeds"] == 2 and entry["ci95"]
    kappa = written["cells"][1]["kappa"]
    assert kappa["e_of"] == "control" and kappa["value"] == pytest.approx(0.3 * 2.718281828 ** -kappa["e"])
    assert written["cells"][1]["kappa"]["e"] == written["cells"][3]["kappa"]["e"]
    table = (out / "sweep.md").read_text()
    assert (
        table.count("\n| 0.3 |") == 2 and table.count("\n| 3.0 |") == 2 and "FVU" in table and "mean \\|phi\\|" in table
    )
    assert (out / "figures/pareto.png").stat().st_size > 5000 and (
        out / "figures/dose-response.png"
    ).stat().st_size > 5000
    assert [dimension["key"] for dimension in written["parallel"]["dimensions"]] == [
        "train.lambda2",
        "train.sigma_sq",
        *written["objectives"],
    ]
    assert written["time"]["saes"] == 12 and written["time"]["whole"] > written["time"]["steps"] > 0
    assert not list(out.rglob("firings"))


def test_the_best_cell_is_confirmed_on_new_seeds(done):
    out, result = done
    confirm = result["confirm"]
    recipe = Recipe.load(out / "best.toml")
    best = next(cell for cell in result["cells"] if cell["name"] == confirm["cell"])
    assert recipe.seeds == (2, 3, 4) and recipe.train.lambda2 == best["setting"]["train.lambda2"]
    # what the sweep left out is measured again
    assert recipe.measure.keep_firings and recipe.measure.pursuit_k == 3 and recipe.measure.shifts == 3
    assert confirm["command"] == f"metasae run {out}/best.toml --out {out}-confirmed"


def test_a_second_call_does_nothing_again(done, tmp_path):
    out, result = done
    copy = tmp_path / "copy"
    shutil.copytree(out, copy, symlinks=True)
    before = stamps(copy)
    assert without_machine(tiny(copy)) == without_machine(result)
    assert stamps(copy) == before


def test_seeds_and_values_may_be_added(done, tmp_path):
    out, _ = done
    copy = tmp_path / "copy"
    shutil.copytree(out, copy, symlinks=True)
    before = stamps(copy)
    more = tiny(copy, {"train.lambda2": [0.3, 1.0], "train.sigma_sq": [1.0]}, seeds=[2])
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in before.items())
    assert len(more["cells"]) == 5 and all(cell["seeds"] == [0, 1, 2] for cell in more["cells"])
    assert more["cells"][1]["differences"]["fidelity.fvu"]["n_seeds"] == 3
    names = [path.name for path in (copy / "saes").iterdir()]
    assert sum(name.startswith("solo") for name in names) == 3 and sum(name.startswith("joint") for name in names) == 15


def test_another_sweep_in_the_same_folder_is_refused(done):
    out, _ = done
    for options, words in [
        ({"overrides": TINY | {"train.lr": 1e-3}}, r"another train\.lr"),
        ({"objectives": ["fidelity.fvu"]}, "another objectives"),
        ({"grid_": None, "named": "k"}, "another shared_baseline"),
    ]:
        with pytest.raises(UserError, match=words):
            tiny(out, **options)


def test_a_sweep_that_was_moved_goes_on(tmp_path, monkeypatch):
    grid = {"train.lambda2": [0.3, 3.0]}
    whole = tiny(tmp_path / "whole", grid, seeds=1)
    trained = []
    real = worker_module.train_arm

    def stop_at_the_fourth(*arguments, **options):
        if len(trained) == 3:
            raise Interrupted("stopped by a test")
        trained.append(arguments[3].label)
        return real(*arguments, **options)

    monkeypatch.setattr(worker_module, "train_arm", stop_at_the_fourth)
    with pytest.raises(Interrupted, match=r"stopped by a test\. Continue with the same command"):
        tiny(tmp_path / "before", grid, seeds=1)
    monkeypatch.setattr(worker_module, "train_arm", real)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "before").rename(tmp_path / "elsewhere/after")
    assert without_machine(tiny(tmp_path / "elsewhere/after", grid, seeds=1)) == without_machine(whole)
    assert contents(tmp_path / "elsewhere/after") == contents(tmp_path / "whole")
    assert all(
        path.resolve().is_relative_to(tmp_path / "elsewhere")
        for path in (tmp_path / "elsewhere/after/cells").glob("*/arms/*")
    )


def test_ctrl_c_stops_measuring_at_once_and_keeps_what_is_measured(tmp_path, monkeypatch, capsys):
    real, measured = worker_module.measure_arm, []

    def press(*arguments):
        measured.append(arguments)
        if len(measured) == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return real(*arguments)

    monkeypatch.setattr(worker_module, "measure_arm", press)
    grid = {"train.lambda2": [0.3]}
    with pytest.raises(
        Interrupted, match=r"stopped at once \(measuring .*\); what is done is kept\. Continue with the same command"
    ):
        tiny(tmp_path / "a", grid, seeds=1)
    assert capsys.readouterr().err.startswith("stopping (measuring ") and len(measured) == 2
    assert tiny(tmp_path / "a", grid, seeds=1)["cells"][0]["state"] == "done"
    assert not list((tmp_path / "a").rglob("failed.json"))


def test_a_cell_whose_loss_is_no_number_says_so_and_the_sweep_goes_on(done, tmp_path):
    _, whole = done
    result = tiny(tmp_path / "a", {"train.lambda2": [0.3, 3e38], "train.sigma_sq": [1.0]})
    good, bad = result["cells"]
    assert good["state"] == "done" and good["means"] == whole["cells"][1]["means"] and good["on_front"]
    assert (
        bad["state"] == "failed" and "joint-s0: the loss is no longer finite" in bad["why"] and not bad["differences"]
    )
    assert result["failed"] == {bad["name"]: bad["why"]}
    assert "no longer finite" in json.loads(next((tmp_path / "a/saes").glob("*/failed.json")).read_text())["why"]
    assert "failed: joint-s0" in (tmp_path / "a/sweep.md").read_text()


def test_a_full_disk_fails_its_cell_and_a_second_call_puts_it_right(done, tmp_path, monkeypatch):
    _, whole = done
    real, refused = Trainer.export, []

    def export(self, *arguments):
        if self.arm == "joint" and self.lambda2 == 3.0 and self.seed == 1:
            refused.append(1)
            raise UserError("cannot write it: No space left on device; free some space")
        return real(self, *arguments)

    monkeypatch.setattr(Trainer, "export", export)
    result = tiny(tmp_path / "a")
    assert [cell["state"] for cell in result["cells"]] == ["done", "done", "failed", "failed"] and len(refused) == 2
    assert "joint-s1: cannot write it: No space left on device" in result["cells"][2]["why"]
    monkeypatch.setattr(Trainer, "export", real)
    assert without_machine(tiny(tmp_path / "a")) == without_machine(whole)


def test_a_disk_that_takes_nothing_at_all_is_one_clear_error(tmp_path, monkeypatch):
    def refuse(*arguments, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("safetensors.torch.save_file", refuse)
    result = tiny(tmp_path / "a", {"train.lambda2": [0.3]}, seeds=1)
    assert (
        result["cells"][0]["state"] == "failed"
        and "No space left" in result["cells"][0]["why"]
        and result["best"] is None
    )


def test_an_unforeseen_error_keeps_its_traceback(tmp_path, monkeypatch):
    monkeypatch.setattr(worker_module, "train_arm", lambda *a, **k: 1 / 0)
    result = tiny(tmp_path / "a", {"train.lambda2": [0.3]}, seeds=1)
    assert "ZeroDivisionError" in result["cells"][0]["why"]
    assert "1 / 0" in json.loads(next((tmp_path / "a/saes").glob("*/failed.json")).read_text())["traceback"]


def test_cells_of_fewer_tokens_see_what_a_run_of_their_own_would(tmp_path):
    result = tiny(tmp_path / "a", {"train.tokens": [1_200, 2_400]}, seeds=1)
    alone = metasae.run(
        tmp_path / "a" / result["cells"][0]["folder"] / "recipe.toml", out=tmp_path / "alone", show=False
    ).comparison
    assert alone["arms"]["joint"]["means"]["fidelity.fvu"] == result["cells"][0]["means"]["fidelity.fvu"]


def test_identical_cells_are_one(tmp_path):
    result = tiny(tmp_path / "a", {"train.lambda2": [0.3, 0.30], "train.checkpoint_every": [5, 9]}, seeds=1)
    assert len(result["cells"]) == 1


def test_early_stopping_keeps_the_front_of_the_first_seed(done, tmp_path):
    _, whole = done
    result = tiny(tmp_path / "a", early_stop=True, objectives=["fidelity.fvu"])
    states = {cell["name"]: cell["state"] for cell in result["cells"]}
    by_fvu = sorted(whole["cells"], key=lambda cell: cell["differences"]["fidelity.fvu"]["values"][0]["a"])
    assert [states[cell["name"]] for cell in by_fvu] == ["done", "done", "stopped", "stopped"]
    stopped = next(cell for cell in result["cells"] if cell["state"] == "stopped")
    assert (
        stopped["seeds"] == [0] and stopped["differences"]["fidelity.fvu"]["ci95"] is None and not stopped["on_front"]
    )
    assert "stopped: stopped early" in (tmp_path / "a/sweep.md").read_text()
    # and a second call leaves them stopped
    again = tiny(tmp_path / "a", early_stop=True, objectives=["fidelity.fvu"])
    assert without_machine(again) == without_machine(result)


def test_a_cell_that_failed_before_early_stopping_was_decided_is_judged_like_the_others(tmp_path, monkeypatch):
    real, lambdas = worker_module.train_arm, {"train.lambda2": [0.001, 3.0, 30.0]}

    def broken(recipe, source, cache, arm, *args, **options):
        if arm.name == "joint" and recipe.train.lambda2 == 0.001:
            raise RuntimeError("out of memory")
        return real(recipe, source, cache, arm, *args, **options)

    monkeypatch.setattr(worker_module, "train_arm", broken)
    tiny(tmp_path / "a", lambdas, early_stop=True, objectives=["fidelity.fvu"])
    monkeypatch.setattr(worker_module, "train_arm", real)
    result = tiny(tmp_path / "a", lambdas, early_stop=True, objectives=["fidelity.fvu"])
    alone = tiny(tmp_path / "b", lambdas, early_stop=True, objectives=["fidelity.fvu"])

    def states(result):
        return {cell["setting"]["train.lambda2"]: cell["state"] for cell in result["cells"]}

    # with cells that were settled before, more may go on; none goes no further that would have
    assert all(states(result)[value] == "done" for value, state in states(alone).items() if state == "done")


def test_an_sae_that_was_trained_otherwise_is_not_taken_for_the_cells(done, tmp_path):
    folder, result = done
    shutil.copytree(folder, tmp_path / "a", symlinks=True)
    cell = result["cells"][0]
    config = tmp_path / "a/saes" / cell["saes"]["joint-s0"] / "primary/cfg.json"
    config_values = json.loads(config.read_text())
    config_values["metadata"]["metasae"]["recipe"]["train"]["lambda2"] = 7.0
    config.write_text(json.dumps(config_values))
    note = tmp_path / "a" / cell["folder"] / "cell.json"
    note.write_text(json.dumps(json.loads(note.read_text()) | {"state": "open"}))
    again = next(other for other in tiny(tmp_path / "a")["cells"] if other["name"] == cell["name"])
    assert again["state"] == "failed" and "trained with train.lambda2=7.0" in again["why"]


def test_the_verb(tmp_path):
    table = "{" + ", ".join(f"{key} = {value}" for key, value in TINY["planted"].items()) + "}"
    words = ["sweep", "planted", "--grid", "train.lambda2=0.3", "--seeds", "1", "--objective", "fidelity.fvu", "--json"]
    for key, value in TINY.items():
        words += ["--set", f"{key}={table if key == 'planted' else value}"]
    told = CliRunner().invoke(app, [*words, "--out", str(tmp_path / "a")])
    assert told.exit_code == 0, told.output
    result = json.loads(told.stdout)
    assert result["objectives"] == ["fidelity.fvu"] and result["cells"][0]["state"] == "done"


@pytest.mark.parametrize("options, words", [
    ({"grid_": None}, "give one of --grid"),
    ({"named": "kinds"}, "give one of --grid"),
    ({"grid_": None, "named": "kind"}, "did you mean 'kinds'"),
    ({"grid_": {"train.lambda2": ["x"]}}, r"train\.lambda2"),
    ({"grid_": {"sae.k": [4000]}}, "more than n"),
    ({"search": 0}, "at least one trial"),
    ({"search": 3, "early_stop": True}, "works with a grid only"),
    ({"workers": 0}, "at least one"),
    ({"objectives": ["fidelity.fvuu"]}, "did you mean 'fidelity.fvu'"),
    ({"objectives": ["fidelity.l0"]}, "without a better direction"),
    ({"overrides": TINY | {"measure.across": True}}, "no measures that take two SAEs"),
    ({"device": "gpu"}, "not one of cpu, cuda"),
])  # fmt: skip
def test_a_wrong_call_is_one_clear_error_and_writes_nothing(tmp_path, options, words):
    with pytest.raises(UserError, match=words):
        tiny(tmp_path / "a", **options)
    assert not (tmp_path / "a/plan.json").exists()


def test_a_sweep_measures_less_than_a_run_unless_told(tmp_path):
    whole = Recipe.load("demo")
    assert light(whole) == {
        "measure.tokens": 36_000, "measure.output_tokens": 3_600, "measure.keep_firings": False,
        "measure.across": False,
        "measure.shifts": 0, "measure.pursuit_k": 0, "measure.excess_blocks": False,
    }  # fmt: skip
    tiny(tmp_path / "a", {"train.lambda2": [0.3]}, seeds=1, overrides=TINY | {"measure.shifts": 1})
    assert read_plan(SweepFolder(tmp_path / "a")).base.measure.shifts == 1


def test_gpus_are_given_out_by_free_memory(monkeypatch):
    free = {0: 10, 1: 30, 2: 20}
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda number: (free[number], 40))
    assert launch.devices("cuda", 4) == ["cuda:1", "cuda:2", "cuda:0", "cuda:1"]
    assert launch.devices("cuda:2", 2) == ["cuda:2", "cuda:2"] and launch.devices("cpu", 2) == ["cpu", "cpu"]
