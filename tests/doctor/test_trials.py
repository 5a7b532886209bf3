"""The trials: what they scale up, what they leave alone."""

import pytest
import torch

from metasae.doctor import trials
from metasae.doctor.measure_trial import Clock, _narrow, _scaled, measure_seconds
from metasae.doctor.trials import harvest_seconds, try_arm
from metasae.recipe.recipe import Recipe
from metasae.sae.sae import SAE, SAEConfig


def test_the_clock_remembers_outer_tasks_only():
    clock = Clock()
    with clock.task("outer", 10) as task:
        task.advance(4)
        with clock.task("inner", None, "latents"):
            pass
        task.advance(6, loss=1.0)
    assert list(clock.seconds) == ["tokens"] and task.done == 10
    assert 0 < clock.seconds["tokens"] <= task.seconds


def test_a_harvest_reads_on_until_the_last_split_is_full():
    recipe = Recipe.load(
        {
            "text": {"calibration_share": 0.1, "evaluation_share": 0.4},
            "train": {"tokens": 100},
            "measure": {"tokens": 100, "calibration_tokens": 30},
        }
    )
    trial = {"first": 5.0, "text": 1.0, "forward": 0.11}
    # 30 calibration tokens lie within 300 of the text, more than the others need; 230 are harvested
    assert harvest_seconds(trial, recipe) == pytest.approx(5 + 300 * 1.0 + 230 * 0.11)


@pytest.mark.parametrize(
    ("arm", "primary", "meta"), [("solo", 40, 0), ("control", 40, 30), ("joint", 40, 30), ("sequential", 40, 30)]
)
def test_an_arm_has_the_steps_of_its_run(small_recipe, batches, monkeypatch, arm, primary, meta):
    monkeypatch.setattr(trials, "LEAST_SECONDS", 0.0)
    trial, trainer = try_arm(small_recipe(), arm, batches().next, torch.zeros(16))
    assert (trial["n_primary"], trial["n_meta"], trial["n_steps"]) == (primary, meta, trials.STEPS)
    assert (trial["meta"] is None) == (arm == "solo") and trial["step"] > 0
    steps = primary * trial["step"] + meta * (trial["meta"] or 0)
    assert trial["seconds"] == pytest.approx(trial["start"] + steps)
    assert trainer.arm == arm


def test_slow_steps_are_cut_short_and_short_ones_go_on(small_recipe, batches, monkeypatch):
    monkeypatch.setattr(trials, "MOST_SECONDS", 0.0)
    assert try_arm(small_recipe(), "joint", batches().next, torch.zeros(16))[0]["n_steps"] == trials.BLOCK
    monkeypatch.setattr(trials, "MOST_SECONDS", 60.0)
    monkeypatch.setattr(trials, "LEAST_SECONDS", 1.0)
    # more steps than the run itself has
    assert try_arm(small_recipe(tokens=64 * 6), "joint", batches().next, torch.zeros(16))[0]["n_steps"] > trials.STEPS


def test_steps_are_those_after_k_has_come_down_and_penalties_have_begun(small_recipe, batches, monkeypatch):
    monkeypatch.setattr(trials, "LEAST_SECONDS", 0.0)
    recipe = small_recipe(tokens=64 * 1000, penalty_start=0.3)
    recipe = Recipe.load(recipe.model_dump(mode="json"), {"sae.k_start": 9, "sae.k_anneal": 0.5})
    _, trainer = try_arm(recipe, "joint", batches().next, torch.zeros(16))
    assert trainer.done.primary > 500 and trainer._k_now() == recipe.sae.k


def test_measuring_is_scaled_by_what_each_task_grows_with():
    clock = Clock()
    clock.seconds.update({"tokens": 2.0, "meta SAEs": 3.0, "latents": 5.0})
    assert _scaled(clock, 11.0, {"tokens": 100.0, "meta SAEs": 10.0}, rest=4.0) == pytest.approx(
        2 * 100 + 3 * 10 + 5 * 4 + 1 * 4
    )


def test_arms_with_the_same_primary_are_measured_once():
    trial = {"calibrate": 0.0, "reference": 10.0, "sae": 1.0, "steering": 0.0}
    assert measure_seconds(trial, Recipe.load({"arms": ["solo", "control", "joint"], "seeds": 3})) == 10 + 6
    assert measure_seconds(trial, Recipe.load({"arms": ["control", "joint"], "seeds": 3})) == 10 + 6
    assert measure_seconds(trial, Recipe.load({"arms": ["joint"]})) == 10 + 1
    assert measure_seconds(trial, Recipe.load({"arms": ["solo", "control", "sequential"]})) == 10 + 1


def test_a_narrowed_sae_fires_as_its_first_latents_did():
    sae = SAE(SAEConfig(8, 20, k=3))
    sae.init_weights(torch.Generator().manual_seed(0))
    sae.b_dec.data.normal_(generator=torch.Generator().manual_seed(1))
    sae.threshold = torch.linspace(0.1, 0.9, 20)
    x = torch.randn(50, 8, generator=torch.Generator().manual_seed(2))
    narrow = _narrow(sae, 7)
    torch.testing.assert_close(narrow.encode(x), sae.encode(x)[:, :7])
    assert _narrow(sae, 20) is sae


def test_side_effects_are_those_of_both_sides_of_a_pair():
    trial = {"calibrate": 0.0, "reference": 10.0, "sae": 1.0, "steering": 100.0}
    assert measure_seconds(trial, Recipe.load({"arms": ["solo", "joint"], "seeds": 3})) == 10 + 3 * (2 + 200)
    assert (
        measure_seconds(trial, Recipe.load({"arms": ["solo"]}))
        == measure_seconds(trial, Recipe.load({"arms": ["joint"]}))
        == 11
    )
    assert measure_seconds(trial, Recipe.load({"arms": ["solo", "joint"], "measure": {"across": False}})) == 12
