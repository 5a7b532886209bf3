"""The dry run of a sweep: what it says, that it writes nothing, and what it counts once or not at all."""

import json

import pytest
from tiny_sweeps import TINY, entries
from typer.testing import CliRunner

from metasae.cli import main
from metasae.cli.app import app
from metasae.doctor import trials
from metasae.errors import UserError
from metasae.recipe.recipe import Recipe
from metasae.sweep import estimate, sweep
from metasae.sweep.cells import Setting
from metasae.sweep.estimate import cost_of
from metasae.sweep.plan import Plan, asked_plan
from metasae.sweep.preview import _side_by_side
from metasae.sweep.remaining import rows_of

pytestmark = pytest.mark.usefixtures("no_drawing", "short_trials")

GRID = {"train.lambda2": [0.3, 3.0], "train.sigma_sq": [0.3, 1.0]}


@pytest.fixture(autouse=True)
def short_trials(monkeypatch):
    """A trial of training ends after its least number of steps."""
    monkeypatch.setattr(trials, "LEAST_SECONDS", 0.0)


def dry(out, grid=GRID, **options):
    options = {"seeds": 2, "overrides": TINY, "show": False, **options}
    return sweep("planted", grid and entries(grid), out=out, dry_run=True, **options)


def stamps(folder):
    return {path: path.lstat().st_mtime_ns for path in folder.rglob("*")}


def command(*words):
    """metasae sweep planted, tiny, as a user calls it."""
    sets = [f"{key}={value}" for key, value in TINY.items() if key != "planted"]
    return ["sweep", "planted", *words, *(word for text in sets for word in ("--set", text))]


def test_it_writes_nothing_and_counts_shared_saes_once(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = dry(None, workers=2)
    assert not list(tmp_path.iterdir())
    assert result["folder"] == "runs/planted-sweep" and result["fits"] and not result["problems"]
    # solo, control and joint of two seeds; the cells that follow add joint alone
    assert [(cell["label"], cell["saes"]) for cell in result["cells"]] == [
        ("train.lambda2=0.3, train.sigma_sq=0.3", 6),
        ("train.lambda2=0.3, train.sigma_sq=1.0", 2),
        ("train.lambda2=3.0, train.sigma_sq=0.3", 2),
        ("train.lambda2=3.0, train.sigma_sq=1.0", 2),
    ]
    assert (result["saes"], result["saes_to_train"]) == (12, 12)
    # control's measures are those of solo
    assert result["saes_to_measure"] == 10 and result["tokens_to_harvest"] == 0
    seconds = result["seconds"]
    assert all(value > 0 for value in seconds.values()) and result["hours"] == seconds["whole"] / 3600
    assert sum(cell["seconds"] for cell in result["cells"]) < seconds["train"] + seconds["measure"]


def test_what_is_trained_costs_nothing(tmp_path, monkeypatch):
    folder = tmp_path / "a"
    sweep("planted", entries({"train.lambda2": [0.3]}), seeds=1, out=folder, overrides=TINY, show=False)
    before = stamps(tmp_path)
    result = dry(folder, {"train.lambda2": [0.3, 3.0]}, seeds=1)
    old, new = result["cells"]
    assert (old["saes"], old["trained"], old["seconds"]) == (3, 3, 0.0)
    assert (new["saes"], new["trained"]) == (1, 0) and new["seconds"] > 0
    assert (result["saes"], result["saes_to_train"], result["saes_to_measure"]) == (4, 1, 1)
    assert stamps(tmp_path) == before
    # a trained SAE without measures still has to be measured, and seeds that are added are new SAEs
    next(folder.glob("saes/solo-*/measures.json")).unlink()
    result = dry(folder, {"train.lambda2": [0.3]}, seeds=2)
    assert (result["saes_to_train"], result["saes_to_measure"]) == (3, 3)


def test_nothing_is_tried_if_all_is_done(tmp_path, monkeypatch):
    folder = tmp_path / "a"
    sweep("planted", entries({"train.lambda2": [0.3]}), seeds=1, out=folder, overrides=TINY, show=False)
    monkeypatch.setattr(estimate, "piece_of", None)
    result = dry(folder, {"train.lambda2": [0.3]}, seeds=1)
    assert result["seconds"] == {"harvest": 0.0, "train": 0.0, "measure": 0.0, "whole": 0.0} and result["fits"]


def test_activations_that_exist_are_not_harvested(build, stories, tmp_path):
    text = tmp_path / "stories.jsonl"
    text.write_text("\n".join(json.dumps({"text": story}) for story in stories))
    recipe = {
        "model": {"path": str(build("gpt2")), "dtype": "fp32"},
        "hook": {"point": "blocks.1.hook_resid_pre"},
        "text": {"source": str(text), "context": 32, "calibration_share": 0.2, "evaluation_share": 0.2},
        "sae": {"n": 64, "k": 4},
        "meta": {"n": 8, "k": 2},
        "train": {"tokens": 4000, "batch": 128, "n_primary_steps": 4, "n_meta_steps": 2},
        "measure": {"tokens": 1500, "calibration_tokens": 1500, "output_tokens": 0, "meta_steps": 5, "critics": 1},
        "arms": ["solo"],
    }
    grid = ["train.tokens=2000,5000"]
    options = {"grid": grid, "out": tmp_path / "here" / "a", "show": False}
    result = sweep(recipe, **options, dry_run=True)
    # of the longest cell
    assert result["tokens_to_harvest"] == 8000 and result["seconds"]["harvest"] > 0
    first, second = (cell["seconds"] for cell in result["cells"])
    assert second > first and not (tmp_path / "here").exists()
    sweep(recipe, **options | {"grid": ["train.tokens=5000"]})
    result = sweep(recipe, **options, dry_run=True)
    assert (result["tokens_to_harvest"], result["seconds"]["harvest"], result["saes_to_train"]) == (0, 0, 1)


def test_the_command_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "150")
    words = command("--named", "meta-width", "--seeds", "1", "--dry-run")
    told = CliRunner().invoke(app, [*words, "--json"])
    assert told.exit_code == 0, told.output
    result = json.loads(told.stdout)
    assert {"cells", "saes", "saes_to_train", "tokens_to_harvest", "seconds", "hours", "workers", "threads", "fits"} < {
        *result
    }
    assert {*result["cells"][0]} == {"label", "setting", "kind", "trials", "saes", "trained", "seconds"}
    told = CliRunner().invoke(app, [*words, "--workers", "2"])
    assert told.exit_code == 0, told.output
    labels = [f"meta.n={cell['setting']['meta.n']}" for cell in result["cells"]]
    places = [told.stdout.index(f" {label} ") for label in labels]
    assert places == sorted(places)
    for part in ("SAEs to train", "harvest", "measuring", "with 2 workers", "Nothing was written"):
        assert part in told.stdout
    assert not list(tmp_path.iterdir())


def test_what_cannot_run_is_exit_1(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = command("--grid", "train.lambda2=0.3", "--seeds", "1", "--dry-run")
    told = CliRunner().invoke(app, [*words, "--set", "train.tokens=1_000_000_000_000_000"])
    assert told.exit_code == 1 and "It does not fit. Memory: " in told.stdout and "not known" in told.stdout
    told = CliRunner().invoke(app, [*words, "--workers", "1000000", "--json"])
    assert told.exit_code == 1 and json.loads(told.stdout)["shortages"][0]["resource"] == "memory"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (("--grid", "train.lambda2=0.3,-1"), "train.lambda2: Input should be greater"),
        (("--grid", "train.batch=1_000_000"), "less than one batch"),
        (("--named", "atomc"), "did you mean 'atomic'"),
        (("--grid", "train.lambda2=0.3", "--set", "sae.m=3"), "unknown key 'sae.m'"),
    ],
)
def test_a_wrong_recipe_is_one_clear_line(tmp_path, monkeypatch, capsys, words, why):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["metasae", *command(*words, "--dry-run")])
    with pytest.raises(SystemExit) as stop:
        main()
    stdout, stderr = capsys.readouterr()
    assert stop.value.code == 2 and why in stderr and stderr.startswith("metasae: ") and stderr.count("\n") == 1
    assert not stdout and not list(tmp_path.iterdir())


def test_a_folder_of_another_sweep_is_refused(tmp_path):
    folder = tmp_path / "a"
    sweep("planted", entries({"train.lambda2": [0.3]}), seeds=1, out=folder, overrides=TINY, show=False)
    with pytest.raises(UserError, match=r"another sae\.k"):
        dry(folder, {"train.lambda2": [0.3]}, overrides=TINY | {"sae.k": 4})
    plan = json.loads((folder / "plan.json").read_text())
    plan["base"]["train"]["later"] = 1
    (folder / "plan.json").write_text(json.dumps(plan))
    with pytest.raises(UserError, match=r"another version \(base\.train\.later\)"):
        dry(folder, {"train.lambda2": [0.3]})


def planned(grid=(), search=None, named=None):
    """The rows of a sweep that has no folder yet."""
    plan, folder = asked_plan("planted", "nowhere", TINY, "cpu", grid, search, named, None, False)
    return rows_of(plan, folder)


def test_a_search_trains_what_its_keys_do_not_decide_once():
    (row,) = planned(search=30)
    arms = [work.member.trained_as for work in row.works]
    assert row.trials == 30 and row.label == "30 trials to draw"
    assert {arm: arms.count(arm) for arm in set(arms)} == {"solo": 3, "control": 3, "joint": 90}
    (row,) = planned(search=5, grid=["sae.k=2..6"])
    assert len(row.works) == 5 * 9


def test_a_search_that_began_has_its_cells_first(tmp_path):
    result = sweep("planted", search=2, seeds=1, out=tmp_path / "a", overrides=TINY, show=False)
    preview = dry(tmp_path / "a", None, search=5, seeds=1)
    assert [cell["trials"] for cell in preview["cells"]] == [1, 1, 3]
    assert [cell["setting"] for cell in preview["cells"][:2]] == [cell["setting"] for cell in result["cells"]]
    assert preview["saes_to_train"] == 3 and "recipe without the searched values" in preview["notes"][0]


def test_cells_of_one_kind_are_told_apart():
    rows = planned(named="kinds")
    labels = [row.label for row in rows]
    assert len(set(labels)) == len(labels) and labels[0] == "solo, sae.k=3" and "ortsae, sae.k=5" in labels
    rows = planned(named="atomic")
    assert [row.label for row in rows][:2] == ["solo", "atomic"]


def cost(arm, **values):
    """`cost_of` an arm of the tiny recipe with these values; keys have __ for the dot."""
    base = Recipe.load("planted", TINY | {"arms": [arm], "seeds": 1})
    setting = Setting({key.replace("__", "."): value for key, value in values.items()})
    return cost_of(Plan("", "", base).members(setting)[0])


def test_alike_trainings_share_a_trial():
    joint, atomic = cost("joint"), cost("atomic")
    assert joint == cost("joint", train__lambda2=9.0, train__sigma_sq=3.0, train__tokens=9000)
    assert cost("solo") == cost("joint", train__lambda2=0.0)
    one_value = {
        "sae__k": 4,
        "sae__n": 40,
        "sae__architecture": "matryoshka",
        "meta__n": 7,
        "train__batch": 100,
        "train__n_meta_steps": 4,
        "train__penalties": {"ortsae": 0.2},
    }
    different = [joint, atomic, cost("solo"), cost("control")]
    different += [cost("joint", **{key: value}) for key, value in one_value.items()]
    assert len(set(different)) == len(different)
    assert atomic == cost("atomic", train__nest={"weight": 1.0}, train__margin=0.3)
    assert atomic != cost("atomic", train__nest={"weight": 0.0})


def test_workers_take_up_saes_in_their_order():
    assert _side_by_side([3.0, 1.0, 1.0, 1.0], 1) == 6.0
    assert _side_by_side([3.0, 1.0, 1.0, 1.0], 2) == 3.0
    assert _side_by_side([1.0, 1.0, 1.0], 2) == 2.0 and _side_by_side([], 2) == 0.0
