"""Which values decide an arm: SAEs of one name must have the same weights to the bit, whatever the recipe says
otherwise.
"""

import itertools

import pytest
import torch

from metasae.progress.progress import SILENT
from metasae.recipe.recipe import Recipe
from metasae.sweep.cells import Setting, canonical, cell_hash, members, sae_hash, trained_as
from metasae.train.loop import train
from metasae.train.trainer import Trainer
from sources import Batches

BASE = Recipe.load(
    {
        "sae": {"n": 24, "k": 3},
        "meta": {"n": 8, "k": 2},
        "train": {
            "tokens": 64 * 12,
            "batch": 64,
            "lambda2": 3.0,
            "n_primary_steps": 3,
            "n_meta_steps": 2,
            "dead_after": 200,
            "k_aux": 4,
        },
        "arms": ["solo", "control", "joint", "sequential", "atomic", "atomic-joint"],
    }
)
# Every key of the three tables that can be changed at all in so small a run, with another value.
CHANGED = {
    "sae.n": 26, "sae.k": 4, "sae.architecture": "topk", "sae.normalize": "none", "sae.b_enc": True,
    "sae.tied_init": False, "sae.k_start": 6,
    "meta.n": 9, "meta.k": 3, "meta.input": "raw", "meta.architecture": "topk",
    "train.tokens": 64 * 13, "train.batch": 32, "train.lambda2": 1.0, "train.sigma_sq": 0.7,
    "train.adaptive_sigma": True, "train.balanced": True,
    "train.meta_gradient": "full", "train.penalties": {"ortsae": 0.5}, "train.penalty_every": 2,
    "train.penalty_start": 0.5,
    "train.n_primary_steps": 2, "train.n_meta_steps": 3, "train.lr": 2e-3, "train.meta_lr": 5e-3,
    "train.betas": [0.8, 0.9], "train.eps": 1e-3,
    "train.warmup": 3, "train.decay": 0.5, "train.clip": 1e-3, "train.dead_after": 10, "train.meta_dead_after": 10,
    "train.k_aux": 2,
    "train.aux_coef": 1.0, "train.aux_residual": "attached", "train.renormalise": "before",
    "train.checkpoint_every": 3, "train.dtype": "bf16",
    "train.kernels": "reference",
    "train.nest": {"weight": 0.5}, "train.margin": 0.2,
}  # fmt: skip
OF_STEPS = ("tokens", "batch", "lr", "betas", "eps", "warmup", "decay", "clip", "dtype", "kernels", "renormalise")
OF_AUX = ("dead_after", "k_aux", "aux_coef", "aux_residual")
FOR_SOLO = {key for key in CHANGED if key.startswith("sae.")} | {f"train.{key}" for key in (*OF_STEPS, *OF_AUX)}
FOR_ATOMIC = {"train.nest", "train.margin"}
FOR_META = {key for key in CHANGED if key.startswith("meta.")} | {
    f"train.{key}" for key in ["n_primary_steps", "n_meta_steps", "meta_lr", "meta_dead_after"]
}


def weights(recipe, arm, seed, folder):
    trainer = Trainer(recipe, arm, seed, torch.full((16,), 0.3))
    with SILENT.task("t", 1) as task:
        train(trainer, Batches(batch=recipe.train.batch, seed=seed), folder, task)
    return {
        f"{which}.{name}": tensor
        for which, sae in trainer.export(1.0, {}).items()
        for name, tensor in sae.state_dict().items()
    }


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def test_no_key_is_forgotten():
    never = {
        "sae.l0",
        "sae.l1",
        "sae.l0_coef",
        "sae.bandwidth",
        "sae.threshold",
        "sae.prefixes",
        "sae.b_dec_init",
        "sae.k_anneal",
        # refused
        "train.init",
    }
    never |= {f"meta.{key}" for key in ("l0", "l1", "l0_coef", "bandwidth", "threshold", "prefixes")}
    every = {f"{table}.{key}" for table in ("sae", "meta", "train") for key in type(getattr(BASE, table)).model_fields}
    assert set(CHANGED) == every - never


@pytest.mark.parametrize("arm, deciding", [
    ("solo", FOR_SOLO),
    ("control", FOR_SOLO | FOR_META),
    ("sequential", FOR_SOLO | FOR_META),
    ("joint", set(CHANGED) - {"train.checkpoint_every", "train.penalty_every", *FOR_ATOMIC}),
    ("atomic", FOR_SOLO | FOR_ATOMIC),
    ("atomic-joint", set(CHANGED) - {"train.checkpoint_every", "train.penalty_every"}),
])  # fmt: skip
def test_what_decides_an_arm(arm, deciding):
    own = sae_hash(BASE, arm, 0)
    assert {
        key for key, value in CHANGED.items() if sae_hash(Setting({key: value}).recipe(BASE), arm, 0) != own
    } == deciding


@pytest.mark.parametrize("arm", ["solo", "control", "sequential", "joint", "atomic", "atomic-joint"])
def test_what_does_not_decide_an_arm_does_not_move_a_bit(arm, tmp_path):
    own = weights(BASE, arm, 0, tmp_path / "base")
    idle = {
        key: value
        for key, value in CHANGED.items()
        if sae_hash(Setting({key: value}).recipe(BASE), arm, 0) == sae_hash(BASE, arm, 0)
    }
    assert idle
    for key, value in idle.items():
        assert same(own, weights(Setting({key: value}).recipe(BASE), arm, 0, tmp_path / key)), key
    # and all of them at once
    assert same(own, weights(Setting(idle).recipe(BASE), arm, 0, tmp_path / "all"))


@pytest.mark.parametrize(
    "key", ["train.lambda2", "train.sigma_sq", "train.n_meta_steps", "meta.k", "train.penalties", "sae.k", "train.lr"]
)
def test_what_decides_joint_does_move_it(key, tmp_path):
    assert not same(
        weights(BASE, "joint", 0, tmp_path / "a"),
        weights(Setting({key: CHANGED[key]}).recipe(BASE), "joint", 0, tmp_path / "b"),
    )


def test_joint_without_a_penalty_is_solo(tmp_path):
    bare = Setting({"train.lambda2": 0.0, "train.penalties": {"ortsae": 0.0}}).recipe(BASE)
    assert trained_as(bare, "joint") == "solo" and sae_hash(bare, "joint", 1) == sae_hash(BASE, "solo", 1)
    assert same(weights(bare, "joint", 1, tmp_path / "a"), weights(BASE, "solo", 1, tmp_path / "b"))


def test_atomic_without_its_parts_is_solo_and_with_a_penalty_joint(tmp_path):
    bare = {"train.nest": {"weight": 0.0}, "train.margin": 0.0}
    recipe = Setting(bare).recipe(BASE)
    assert trained_as(recipe, "atomic") == "solo" and sae_hash(recipe, "atomic", 0) == sae_hash(BASE, "solo", 0)
    assert trained_as(recipe, "atomic-joint") == "joint"
    assert same(weights(recipe, "atomic", 0, tmp_path / "a"), weights(BASE, "solo", 0, tmp_path / "b"))
    assert same(weights(recipe, "atomic-joint", 0, tmp_path / "c"), weights(BASE, "joint", 0, tmp_path / "d"))
    uncharged = Setting({"train.lambda2": 0.0}).recipe(BASE)
    assert trained_as(uncharged, "atomic-joint") == "atomic"
    assert sae_hash(uncharged, "atomic-joint", 0) == sae_hash(BASE, "atomic", 0)


def test_further_penalties_alone_need_no_meta_sae(tmp_path):
    values = {"train.lambda2": 0.0, "train.penalties": {"ortsae": 0.5}}
    one, other = (
        Setting({**values, **more}).recipe(BASE)
        for more in ({}, {"meta.k": 3, "train.sigma_sq": 0.5, "train.n_meta_steps": 1})
    )
    assert sae_hash(one, "joint", 0) == sae_hash(other, "joint", 0) != sae_hash(BASE, "solo", 0)
    assert same(weights(one, "joint", 0, tmp_path / "a"), weights(other, "joint", 0, tmp_path / "b"))
    more = Setting({**values, "train.penalty_every": 2}).recipe(BASE)
    assert sae_hash(one, "joint", 0) != sae_hash(more, "joint", 0)


def test_cells_that_share_an_sae_ask_for_the_very_same_training():
    settings = [Setting({"train.lambda2": a, "meta.k": b}) for a, b in itertools.product((0.1, 1.0), (1, 2))]
    for arm in ("solo", "control"):
        asked = {}
        for setting in settings:
            recipe = setting.recipe(BASE)
            asked.setdefault(sae_hash(recipe, arm, 0), set()).add(canonical(recipe, arm, BASE).model_dump_json())
        assert len(asked) == (1 if arm == "solo" else 2) and all(len(recipes) == 1 for recipes in asked.values())


def test_names_tell_seeds_arms_and_data_apart():
    names = [member.name for member in members(Setting({}), BASE.model_copy(update={"seeds": (0, 1)}))]
    assert len(set(names)) == 12
    for key, value in {
        "text.context": 64,
        "measure.tokens": 9,
        "hook.point": "blocks.1.hook_resid_pre",
        "planted": {"d": 8},
    }.items():
        assert sae_hash(Recipe.load(BASE.model_dump(mode="json"), {key: value}), "solo", 0) != sae_hash(
            BASE, "solo", 0
        ), key
    for key, value in {
        "description": "x",
        "seeds": [5],
        "arms": ["solo"],
        "harvest.cache": "x",
        "harvest.batch_tokens": 9,
    }.items():
        other = Recipe.load(BASE.model_dump(mode="json"), {key: value})
        assert sae_hash(other, "solo", 0) == sae_hash(BASE, "solo", 0) and cell_hash(other) == cell_hash(BASE), key


def test_a_number_written_otherwise_is_the_same_cell():
    assert cell_hash(Setting({"train.lambda2": 1}).recipe(BASE)) == cell_hash(
        Setting({"train.lambda2": 1.0}).recipe(BASE)
    )
    assert cell_hash(Setting({"train.lambda2": 0.1}).recipe(BASE)) != cell_hash(
        Setting({"train.lambda2": 0.3}).recipe(BASE)
    )


def test_a_shared_baseline_is_the_sweeps_own():
    shared = {member.arm: member for member in members(Setting({"sae.k": 5}), BASE, shared_baseline=True)}
    own = {member.arm: member for member in members(Setting({}), BASE)}
    assert (
        shared["solo"].name == own["solo"].name
        and shared["joint"].name != own["joint"].name
        and shared["joint"].recipe.sae.k == 5
    )


@pytest.mark.parametrize("penalties", [{}, {"ortsae": 0.5}])
@pytest.mark.parametrize("switched", [
    {}, {"train.lambda2": 0.0}, {"train.penalties": {}}, {"train.penalties": {"c2r": 1.0}},
    {"train.lambda2": 0.0, "train.penalties": {"c2r": 1.0}}, {"train.lambda2": 0.0, "train.penalties": {}},
])  # fmt: skip
def test_an_sae_is_trained_by_a_recipe_that_decides_it_as_the_cells_own_does(penalties, switched):
    base = Setting({"train.penalties": penalties}).recipe(BASE)
    for changes in ({}, *({key: value} for key, value in CHANGED.items())):
        recipe = Setting({**changes, **switched}).recipe(base)
        for arm in ("solo", "control", "joint", "sequential"):
            trained = canonical(recipe, arm, base)
            assert sae_hash(trained, trained_as(recipe, arm), 0) == sae_hash(recipe, arm, 0), (changes, arm)


def test_a_penalty_that_a_cell_turns_off_stays_off():
    cell = Setting({"train.lambda2": 0.0, "train.penalties": {"ortsae": 0.25}})
    joint = next(member for member in members(cell, BASE) if member.arm == "joint")
    assert (
        joint.trained_as == "joint"
        and joint.recipe.train.lambda2 == 0
        and joint.recipe.train.penalties == {"ortsae": 0.25}
    )
