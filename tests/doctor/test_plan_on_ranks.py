"""What a rank of a plan holds and sends, against the arithmetic of one GPU, by hand, and against ranks that run."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from steps_on_ranks import four_steps

from metasae.doctor import estimate
from metasae.doctor.cards import CARDS, Card
from metasae.doctor.gpus import MESSAGES, GpuPlan, parts_of, plan, sent_bytes
from metasae.doctor.presence import Shape
from metasae.errors import UserError
from metasae.recipe.recipe import Recipe
from metasae.sae.gradients import matmul_dtype
from spawned import environment, free_port, on_ranks

GPT2_LARGE = Shape(1280, 774_030_080, 50_257, 8e8, "a test")
H200 = CARDS["h200"]


def plan_of(gpus=1, source="paper-gpt2-large", card=H200, efficiency=0.5, **overrides):
    return GpuPlan(Recipe.load(source, overrides), gpus, card, efficiency, GPT2_LARGE)


@pytest.mark.parametrize(
    "overrides", [{}, {"harvest.window_tokens": 10**6}, {"train.dtype": "fp32", "model.dtype": "fp32"}]
)
def test_one_gpu_needs_what_one_gpu_needed(overrides):
    one = plan_of(1, **overrides)
    model = GPT2_LARGE.numbers * (4 if "model.dtype" in overrides else 2)
    width = 4 if "train.dtype" in overrides else 2
    assert one.needs == estimate.needs(one.recipe, 1280, model, GPT2_LARGE.vocabulary, width, on_gpu=True)
    assert one.step("joint")["sending"] == 0 and not {"sent", "sending"} & one.figures.keys()


def test_a_rank_by_hand():
    """1000 latents of width 64 on 3 ranks: 334 on the first; 90 meta latents; batches of 256, bf16."""
    values = {
        "sae": {"n": 1000, "k": 6},
        "meta": {"n": 90, "k": 4, "input": "token"},
        "train": {"batch": 256},
        "model": {"name": "gpt2"},
    }
    three = GpuPlan(Recipe.load(values), 3, H200, 0.5, Shape(64, 10**6, 0, 1e6, "a test"))
    weights, meta_weights = 16 * (2 * 334 * 64 + 64), 16 * (2 * 90 * 64 + 64)
    assert three.figures["weights"]["value"] == weights and three.figures["meta weights"]["value"] == meta_weights
    primary = 4 * (2 * 334 * 64 + 64) + 2 * 334 * 64 + 4 * 256 * 334 + 60 * (256 * 6 * 334 // 1000) + 27 * 256 * 64
    meta = 4 * (2 * 90 * 64 + 64) + 2 * 90 * 64 + 4 * 334 * 90 + 60 * 334 * 4 + 48 * 334 * 64 + 4 * (2 * 90 * 64 + 64)
    trained = estimate.train_bytes(three.recipe, 64, 2, 3)
    assert trained == (weights + meta_weights + max(primary, meta), weights + meta_weights) and meta > primary
    gathering = 12 * (2 * 334 * 64 + 64 + 2 * 90 * 64 + 64) + 12 * 1000 * 64
    assert three.needs.train == max(trained[0], gathering)
    assert three.needs.gpu == 2 * 10**6 + max(three.needs.forward, trained[0], gathering)


@pytest.mark.parametrize("source", ["paper-gpt2-large", "paper-gemma2-9b", "modern-gpt2-small", "demo"])
@pytest.mark.parametrize("overrides", [{}, {"train.dtype": "fp32", "sae.architecture": "relu"}])
def test_more_ranks_never_need_more_memory_each(source, overrides):
    plans = [plan_of(gpus, source, **overrides) for gpus in range(1, 65)]
    for name in ("gpu", "train", "weights"):
        # from two on the first rank brings the SAE together
        sizes = [getattr(some.needs, name) for some in plans[1:]]
        assert sizes == sorted(sizes, reverse=True), name
    computing = [some.step(some.arm)["computing"] for some in plans]
    assert computing == sorted(computing, reverse=True)


def test_candidates_of_topk_grow_with_the_ranks():
    """Every rank sees every rank's k largest of each token."""
    recipe = Recipe.load("paper-gpt2-large", {"sae.architecture": "topk", "arms": ["solo"]})
    passing = [all_ - weights for all_, weights in (estimate.train_bytes(recipe, 1280, 2, W) for W in (64, 128, 256))]
    assert passing == sorted(passing) and passing[2] > passing[0]


def test_a_step_is_its_parts_and_what_it_sends():
    there = Card("slow", 1e12, 5e11, 1e11, 1e10, 1e10, 1e9)
    four = plan_of(4, card=there, efficiency=0.25)
    step, parts = four.step("joint"), parts_of(four.recipe, 1280, "joint", 4)
    sending = sent_bytes(four.recipe, 1280, "joint", 4) / 1e9
    assert step["floor"] == pytest.approx(sum(part.floor(there, 2) for part in parts) + sending)
    gathering = sum(part.gathered for part in parts) / 1e10
    assert step["slow"] == pytest.approx(4 * (step["floor"] + gathering) + MESSAGES)


def test_further_penalties_look_at_all_rows():
    """All rows on each rank, twice where stretches differ, and the gradient of the rank's own."""
    further = {"train.penalties": {"ortsae": 0.1, "c2r": 0.1, "cofiring": 0.1}}
    alone = {"train.lambda2": 0, "arms": ["solo", "joint"]}  # without a meta step, which may hold more

    def more(gpus, **changed):
        recipes = (
            Recipe.load("paper-gpt2-large", {**alone, **further, **changed}),
            Recipe.load("paper-gpt2-large", alone),
        )
        one, other = (estimate.train_bytes(recipe, 1280, 2, gpus)[0] for recipe in recipes)
        return one - other

    row = 4 * 1280
    assert more(8) == row * 20_480 + row * 2560
    assert more(3) == 2 * row * 20_480 + row * 6827
    assert more(1) == row * 20_480
    assert more(8, arms=["solo"]) == 0


def test_the_harvest_is_shared_but_for_windows():
    tokens, flops = 101_500_000, GPT2_LARGE.flops
    assert plan_of(1).harvest == pytest.approx((tokens * flops / 989e12, 2 * tokens * flops / 989e12))
    assert plan_of(4).harvest[0] == pytest.approx(plan_of(1).harvest[0] / 4)
    windows = plan_of(4, **{"harvest.window_tokens": 10**6})
    assert windows.harvest[0] == pytest.approx((10**8 + 1_500_000 / 4) * flops / 989e12)
    need = windows.needs
    assert need.gpu == need.model + need.forward + need.train


@pytest.mark.parametrize(
    ("gpus", "overrides", "words"),
    [
        (0, {}, "at least one"),
        (-1, {}, "at least one"),
        (20_481, {}, "20480 latents cannot be spread over 20481 ranks"),
        (2, {"meta.architecture": "relu"}, "meta.architecture = 'relu' is not supported"),
    ],
)
def test_ranks_that_training_would_refuse_are_refused_in_one_line(gpus, overrides, words):
    with pytest.raises(UserError) as error:
        plan("paper-gpt2-large", gpus, "h200", overrides)
    assert words in str(error.value) and "\n" not in str(error.value)


def test_what_training_takes_is_not_refused():
    for gpus, overrides in (
        (2, {"sae.architecture": "matryoshka"}),
        (2, {"train.penalties": {"c2r": 0.1, "ortsae": 0.1, "cofiring": 0.1}}),
        (2, {"meta.architecture": "relu", "arms": ["solo"]}),
        (20_480, {}),
    ):
        assert plan("paper-gpt2-large", gpus, "h200", overrides).gpus == gpus


def test_other_numbers_of_gpus_are_those_that_training_takes():
    alone = replace(plan_of(1, **{"meta.architecture": "relu"}), gpus=1)
    assert list(alone.others) == [1] and [row["gpus"] for row in alone.as_dict()["scaling"]] == [1]


def joint_recipe(dtype, further):
    values = {
        "sae": {"n": 256, "k": 8}, "meta": {"n": 24, "k": 4}, "arms": ["joint"], "model": {"name": "gpt2"},
        "train": {"batch": 1024, "dtype": dtype, "n_primary_steps": 1, "n_meta_steps": 1},
    }  # fmt: skip
    if further:
        values["sae"] |= {"architecture": "matryoshka", "prefixes": [0.25, 0.75]}
        values["train"]["penalties"] = {"ortsae": 0.1, "cofiring": 0.1}
    return values


def test_bytes_sent_are_nearly_those_of_a_step():
    """The tokens are not sent here, as every rank makes them up; histograms and sums are left out of the estimate."""
    d, cases = 256, [("fp32", False), ("bf16", False), ("fp32", True)]
    recipes = [joint_recipe(dtype, further) for dtype, further in cases]
    first_rank = on_ranks(2, four_steps, recipes, d)[0]
    for (dtype, _), values, told in zip(cases, recipes, first_rank, strict=True):
        recipe = Recipe.load(values)
        tokens = 512 * d * 2
        estimated = sent_bytes(recipe, d, "joint", 2, {"fp32": 4, "bf16": 2}[dtype]) - tokens
        counted = sum(told["sent"][-1])
        assert estimated < counted < 1.2 * estimated, (dtype, counted, estimated)


def memory_on_ranks(gpus, values, d, folder):
    """The bytes by which each of so many processes grew in four steps."""
    program = Path(__file__).with_name("steps_on_ranks.py")
    command, port = [sys.executable, str(program), json.dumps(values), str(folder), str(d)], free_port()
    environments = [os.environ | environment(rank, gpus, port) for rank in range(gpus)]
    started = [subprocess.Popen(command, env=own, stderr=subprocess.PIPE, text=True) for own in environments]
    errors = [process.communicate()[1] for process in started]
    assert all(process.returncode == 0 for process in started), errors
    return [json.loads((folder / f"{rank}.json").read_text())["memory"] for rank in range(gpus)]


@pytest.mark.slow
@pytest.mark.parametrize(("arm", "n", "batch"), [("solo", 8192, 8192), ("joint", 16384, 256)], ids=["batch", "rows"])
def test_memory_of_a_rank_is_that_of_a_process_that_trains(tmp_path, arm, n, batch):
    values = {"sae": {"n": n, "k": 16}, "meta": {"n": n // 11}, "train": {"batch": batch}, "arms": [arm]}
    width = matmul_dtype("auto", torch.device("cpu")).itemsize
    wanted = estimate.train_bytes(Recipe.load(values), 512, width, 2)[0]
    for memory in memory_on_ranks(2, values, 512, tmp_path):
        assert wanted == pytest.approx(memory, rel=0.25)
