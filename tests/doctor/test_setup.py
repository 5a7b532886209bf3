"""What a rank of a plan holds and sends, against the arithmetic of one GPU, by hand, and against ranks that run."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from steps_on_ranks import four_steps

from metasae.doctor import estimate
from metasae.doctor.cards import CARDS, Card
from metasae.doctor.floors import above_of, floor_of
from metasae.doctor.presence import Shape
from metasae.doctor.setup import MESSAGE, Setup, refuse_unusable
from metasae.errors import UserError
from metasae.recipe.recipe import Recipe
from metasae.sae.gradients import matmul_dtype
from metasae.train.sharded.traffic import bytes_per_step
from spawned import environment, free_port, on_ranks

GPT2_LARGE = Shape(1280, 774_030_080, 50_257, 8e8, "a test")
H200 = CARDS["h200"]


def setup_of(gpus=1, source="paper-gpt2-large", card=H200, efficiency=0.5, **overrides):
    return Setup(Recipe.load(source, overrides), gpus, card, efficiency, GPT2_LARGE)


@pytest.mark.parametrize(
    "overrides", [{}, {"harvest.window_tokens": 10**6}, {"train.dtype": "fp32", "model.dtype": "fp32"}]
)
def test_one_gpu_needs_what_one_gpu_needed(overrides):
    setup = setup_of(1, **overrides)
    model = GPT2_LARGE.numbers * (4 if "model.dtype" in overrides else 2)
    width = 4 if "train.dtype" in overrides else 2
    needed = estimate.needs(setup.recipe, 1280, model, GPT2_LARGE.vocabulary, width, on_gpu=True)
    assert setup.memory.first == needed.gpu == setup.needs.gpu and setup.memory.gather == 0
    assert setup.memory.training == needed.train and setup.host_memory == needed.memory
    assert setup.messages("joint") == setup.sent("joint") == setup.step("joint").sending == 0


def test_a_rank_by_hand():
    """1000 latents of width 64 on 3 ranks: 334 on the first; 90 meta latents; batches of 256, bf16."""
    values = {
        "sae": {"n": 1000, "k": 6},
        "meta": {"n": 90, "k": 4, "input": "token"},
        "train": {"batch": 256},
        "model": {"name": "gpt2"},
    }
    memory = Setup(Recipe.load(values), 3, H200, 0.5, Shape(64, 10**6, 0, 1e6, "a test")).memory
    assert memory.weights == 16 * (2 * 334 * 64 + 64)
    assert memory.meta == 16 * (2 * 90 * 64 + 64)
    primary = 4 * (2 * 334 * 64 + 64) + 2 * 334 * 64 + 4 * 256 * 334 + 60 * (256 * 6 * 334 // 1000) + 27 * 256 * 64
    meta = 4 * (2 * 90 * 64 + 64) + 2 * 90 * 64 + 4 * 334 * 90 + 60 * 334 * 4 + 48 * 334 * 64 + 4 * (2 * 90 * 64 + 64)
    assert memory.passing == max(primary, meta) == meta
    assert memory.gather == 12 * 1000 * 64 and memory.model == 2 * 10**6
    assert memory.first == max(memory.other, memory.model + 12 * (2 * 334 * 64 + 64 + 2 * 90 * 64 + 64) + memory.gather)


@pytest.mark.parametrize("source", ["paper-gpt2-large", "paper-gemma2-9b", "modern-gpt2-small", "demo"])
@pytest.mark.parametrize("overrides", [{}, {"train.dtype": "fp32", "sae.architecture": "relu"}])
def test_more_ranks_never_need_more_memory_each(source, overrides):
    setups = [setup_of(gpus, source, **overrides) for gpus in range(1, 65)]
    for name in ("first", "other", "training", "weights"):
        sizes = [getattr(setup.memory, name) for setup in setups]
        assert sizes == sorted(sizes, reverse=True), name
    computing = [setup.step(setup.arm).computing for setup in setups]
    assert computing == sorted(computing, reverse=True)
    assert all(setup.memory.meta == setups[0].memory.meta for setup in setups)


def test_candidates_of_topk_grow_with_the_ranks():
    """Every rank sees every rank's k largest of each token."""
    passing = [
        setup_of(gpus, **{"sae.architecture": "topk", "arms": ["solo"]}).memory.passing for gpus in (64, 128, 256)
    ]
    assert passing == sorted(passing) and passing[2] > passing[0]


def test_a_step_is_its_parts_and_what_it_sends():
    there = Card("slow", 1e12, 5e11, 1e11, 1e10, 1e10, 1e9)
    setup = setup_of(4, card=there, efficiency=0.25)
    step, parts, traffic = setup.step("joint"), setup.parts("joint"), bytes_per_step(setup.recipe, 1280, 4, True)
    assert setup.sent("joint") == pytest.approx(traffic.per_primary_step)
    assert step.floor == pytest.approx(floor_of(parts, there, 2) + traffic.per_primary_step / 1e9)
    assert step.slow == pytest.approx(
        4 * (above_of(parts, there, 2) + traffic.per_primary_step / 1e9) + setup.messages("joint") * MESSAGE
    )
    assert step.span == (step.floor, step.slow)


def test_what_arms_send():
    setup = setup_of(8)
    traffic = setup.traffic
    alone = sum(traffic.primary.values()) - traffic.primary["meta threshold"]
    assert setup.sent("solo") == pytest.approx(alone)
    assert setup.sent("control") == setup.sent("sequential") == pytest.approx(alone + 0.5 * sum(traffic.meta.values()))
    assert setup.sent("joint") == pytest.approx(setup.sent("control") + traffic.primary["meta threshold"])
    assert setup.messages("solo") < setup.messages("control") < setup.messages("joint")


def test_prefixes_and_further_penalties_are_sent_by_the_joint_arm():
    plain, further = (
        setup_of(8),
        {"train.penalties": {"ortsae": 0.1, "c2r": 0.1, "cofiring": 0.1}, "train.penalty_every": 4},
    )
    nested = setup_of(8, **{"sae.architecture": "matryoshka", "sae.prefixes": [0.1, 0.5]})
    # two more reconstructions, R = 7/4
    for arm in ("solo", "joint"):
        assert nested.sent(arm) == pytest.approx(plain.sent(arm) + 2 * 1.75 * 4 * 4096 * 1280)
        assert nested.messages(arm) == plain.messages(arm) + 2
    penalised = setup_of(8, **further)
    assert penalised.sent("solo") == plain.sent("solo") and penalised.messages("control") == plain.messages("control")
    assert penalised.sent("joint") == pytest.approx(plain.sent("joint") + sum(penalised.traffic.further.values()) / 4)
    # M, its sums; rows, nearest and firings, each with their lengths, and the sums of the last
    assert penalised.messages("joint") == plain.messages("joint") + 9 / 4
    # all rows on each rank, twice where stretches differ, and the gradient of the rank's own
    alone = {"train.lambda2": 0, "arms": ["solo", "joint"]}  # without a meta step, which may hold more

    def passing(gpus, **changed):
        return setup_of(gpus, **{**alone, **changed}).memory.passing - setup_of(gpus, **alone).memory.passing

    row = 4 * 1280
    assert passing(8, **further) == row * 20_480 + row * 2560
    assert passing(3, **further) == 2 * row * 20_480 + row * 6827
    assert passing(1, **further) == row * 20_480
    assert passing(8, **{"train.penalties": {"c2r": 0.1}}) == row * 2560
    assert passing(8, **{**further, "arms": ["solo"]}) == passing(8, arms=["solo"])


def test_the_harvest_is_shared_but_for_windows():
    tokens, flops = 101_500_000, GPT2_LARGE.flops
    assert setup_of(1).harvest == pytest.approx((tokens * flops / 989e12, 2 * tokens * flops / 989e12))
    assert setup_of(4).harvest[0] == pytest.approx(setup_of(1).harvest[0] / 4)
    windows = setup_of(4, **{"harvest.window_tokens": 10**6})
    assert windows.harvest[0] == pytest.approx((10**8 + 1_500_000 / 4) * flops / 989e12)
    assert windows.memory.first == windows.memory.model + windows.memory.forward + max(
        windows.memory.training, (windows.memory.weights + windows.memory.meta) * 3 // 4 + windows.memory.gather
    )


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
        refuse_unusable(Recipe.load("paper-gpt2-large", overrides), gpus)
    assert words in str(error.value) and "\n" not in str(error.value)


def test_what_training_takes_is_not_refused():
    for gpus, overrides in (
        (2, {"sae.architecture": "matryoshka"}),
        (2, {"train.penalties": {"c2r": 0.1, "ortsae": 0.1, "cofiring": 0.1}}),
        (2, {"meta.architecture": "relu", "arms": ["solo"]}),
        (20_480, {}),
    ):
        refuse_unusable(Recipe.load("paper-gpt2-large", overrides), gpus)


def joint_recipe(dtype, further):
    values = {
        "sae": {"n": 256, "k": 8}, "meta": {"n": 24, "k": 4}, "arms": ["joint"], "model": {"name": "gpt2"},
        "train": {"batch": 128, "dtype": dtype, "n_primary_steps": 1, "n_meta_steps": 1},
    }  # fmt: skip
    if further:
        values["sae"] |= {"architecture": "matryoshka", "prefixes": [0.25, 0.75]}
        values["train"]["penalties"] = {"ortsae": 0.1, "c2r": 0.1, "cofiring": 0.1}
    return values


def test_messages_are_those_of_a_step():
    """A threshold outside the last one's bins takes one or two more, one without ties in bf16 one less, in each of three selections."""
    cases = [("fp32", False), ("bf16", False), ("fp32", True)]
    recipes = [joint_recipe(dtype, further) for dtype, further in cases]
    first_rank = on_ranks(2, four_steps, recipes, 32)[0]
    for (dtype, further), values, told in zip(cases, recipes, first_rank, strict=True):
        setup = Setup(Recipe.load(values), 2, H200, 0.5, Shape(32, 0, 0, 0.0, "a test"))
        primary, meta = zip(*told["messages"][1:], strict=True)
        # tokens are gathered before the step, and the loop asks twice whether to stop
        counted = min(primary) + min(meta) + 1 + 2
        assert abs(counted - setup.messages("joint")) <= (1 if dtype == "fp32" else 3), (dtype, further)


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
