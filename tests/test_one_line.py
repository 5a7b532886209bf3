"""A new penalty or architecture is one file and one line: the recipe, doctor, several ranks and sweeps take it."""

import importlib
import sys
from pathlib import Path

import pytest
import torch

from metasae.doctor.gpus import plan
from metasae.doctor.report import examine
from metasae.errors import UserError
from metasae.ranks.ranks import ALONE
from metasae.recipe.recipe import Recipe
from metasae.recipe.registry import ARCHITECTURES, PENALTIES
from metasae.sweep.cells import Setting
from metasae.sweep.grid import expand, parse_grid
from metasae.train.sharded.trainer import trainer_of
from sources import Batches
from spawned import on_ranks

# Two penalties, of which one knows nothing of ranks.
PENALTY = '''
"""P = ||mean_i w_i||^2,   dP/dw_i = (2/n) mean_j w_j"""

from metasae.train.penalties.scene import over_ranks


def centred(scene):
    mean_D = scene.W_dec_ND.mean(0)
    return mean_D.square().sum(), (2 / scene.n_latents * mean_D).expand_as(scene.W_dec_ND)


@over_ranks
def centred_together(scene):
    mean_D = scene.over_latents(scene.W_dec_ND.sum(0)) / scene.n_latents
    return mean_D.square().sum(), (2 / scene.n_latents * mean_D).expand_as(scene.W_dec_ND)
'''
# Two architectures: one learns its rule, one chooses by token and is calibrated.
ARCHITECTURE = '''
"""Level: z = pre where pre > options.threshold, at a cost. Largest: the k largest of each token."""

import torch

from metasae.sae.architectures.base import Architecture
from metasae.sae.kernels.kept import Kept


class Level(Architecture):
    own_threshold = True

    def select(self, pre_BN, weights, k, cut, kernels):
        return Kept.where(pre_BN, pre_BN > self.options.threshold), cut

    def sparsity(self, pre_K, kept, dz_K, weights):
        cost = kept.values.sum().reshape(1) * (self.options.l1 / kept.n_rows)
        return self.spread.over_latents(cost)[0], dz_K + self.options.l1 / kept.n_rows, None

    def inference_threshold(self, weights):
        return torch.full((weights.W_dec_ND.shape[0],), self.options.threshold)


class Largest(Architecture):
    def select(self, pre_BN, weights, k, cut, kernels):
        return kernels.select_rows(pre_BN, k), cut
'''
VALUES = {
    "text": {"source": "planted"},
    "planted": {"d": 16, "independent": 12, "groups": 3, "parents": 2},
    "sae": {"n": 48, "k": 3, "threshold": 0.3, "l1": 0.01},
    "meta": {"n": 8, "k": 2},
    "train": {
        "tokens": 64 * 40, "batch": 64, "n_primary_steps": 4, "n_meta_steps": 3, "dtype": "fp32",
        "penalties": {"centred": 0.5, "centred-together": 0.25},
    },
    "measure": {"tokens": 500, "calibration_tokens": 500},
    "arms": ["solo", "joint"],
}  # fmt: skip


def register(folder: Path) -> None:
    """The lines in the registry, for files in `folder`."""
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
    importlib.invalidate_caches()
    PENALTIES["centred"], PENALTIES["centred-together"] = "a_penalty:centred", "a_penalty:centred_together"
    ARCHITECTURES["level"], ARCHITECTURES["largest"] = "an_architecture:Level", "an_architecture:Largest"


@pytest.fixture(params=["level", "largest"])
def recipe(request, tmp_path, monkeypatch):
    """The values of a recipe with the new penalties and one of the new architectures."""
    (tmp_path / "a_penalty.py").write_text(PENALTY)
    (tmp_path / "an_architecture.py").write_text(ARCHITECTURE)
    monkeypatch.syspath_prepend(str(tmp_path))
    for table, names in ((PENALTIES, ("centred", "centred-together")), (ARCHITECTURES, ("level", "largest"))):
        for name in names:
            # taken out again at the end
            monkeypatch.setitem(table, name, "")
    register(tmp_path)
    for module in ("a_penalty", "an_architecture"):
        monkeypatch.delitem(sys.modules, module, raising=False)
    return {**VALUES, "sae": {**VALUES["sae"], "architecture": request.param}}


def test_the_recipe_takes_them_and_forgets_them_with_their_lines(recipe, monkeypatch):
    loaded = Recipe.load(recipe)
    assert loaded.charged("joint") == {"centred": 0.5, "centred-together": 0.25} and loaded.charged("solo") == {}
    monkeypatch.delitem(PENALTIES, "centred")
    with pytest.raises(UserError, match="no penalty 'centred'"):
        Recipe.load(recipe)


def test_doctor_takes_them(recipe, tmp_path):
    wanted = Recipe.load(recipe)
    report = examine(wanted, tmp_path / "run", quick=True)
    assert report["needs"]["train"] > 0 and not report["problems"]
    tried = examine(wanted, tmp_path / "run")
    trials = tried["trials"]
    assert tried["fits"] and set(trials["arms"]) == {"solo", "joint"} and trials["measure"]["sae"] > 0
    on = any("half of its latents active" in note for note in tried["notes"])
    assert on == (recipe["sae"]["architecture"] == "level")


def test_a_plan_takes_them(recipe):
    four = plan(recipe, 4, "h200")
    assert four.fits and four.step("joint")["sending"] > 0
    assert "further penalties" in [part["name"] for part in four.as_dict()["parts"]]


def test_a_sweep_takes_them(recipe):
    base = Recipe.load(recipe)
    axes = parse_grid(
        ['train.penalties=[{"centred": 0.1}, {"centred-together": 0.1}]', "sae.architecture=level,largest"]
    )
    cells = [Setting(values).recipe(base) for values in expand(axes)]
    assert [cell.sae.architecture for cell in cells] == ["level", "largest"] * 2
    assert [list(cell.charged("joint")) for cell in cells] == [["centred"]] * 2 + [["centred-together"]] * 2


def trained(ranks, folder, values):
    """(losses, value of both penalties) of each primary step, and the names of what is exported."""
    register(folder)
    trainer = trainer_of(Recipe.load(values), "joint", 0, torch.full((16,), 0.3), "cpu", ranks)
    source, steps = Batches(64, 16), []
    while action := trainer.next_action():
        if action == "meta":
            trainer.meta_step()
            continue
        losses, numbers = trainer.primary_step(source.next())
        penalties = [float(numbers[name]) for name in ("centred", "centred-together")]
        steps.append([float(losses.l2), float(losses.total), *penalties])
    sae = trainer.export(1.0, {}).get("primary")
    return steps, None if sae is None else (sae.config.architecture, sae.threshold is not None)


def test_one_rank_and_several_train_them_alike(recipe, tmp_path):
    steps, kind = trained(ALONE, tmp_path, recipe)
    architecture = recipe["sae"]["architecture"]
    assert len(steps) == 40 and kind == (architecture, architecture == "level")
    assert steps[-1][0] < steps[0][0] and steps[-1][2] == pytest.approx(steps[-1][3], rel=1e-5)
    for rank, (shared, exported) in enumerate(on_ranks(2, trained, tmp_path, recipe)):
        assert exported == (None if rank else kind)
        torch.testing.assert_close(torch.tensor(shared), torch.tensor(steps), rtol=1e-4, atol=1e-6)
