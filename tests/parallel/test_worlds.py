"""One arm on one, two and three ranks: the same latents are chosen on every step, and the losses agree to rounding."""

import numpy as np
import pytest
from arms import D, arm_trained, values

from metasae.ranks.ranks import ALONE
from metasae.recipe.recipe import Recipe
from metasae.train.sharded.traffic import bytes_per_step, penalty_bytes
from spawned import on_ranks

# Of 64 latents: within a stretch, where one of three ends, where one of two ends; two ranks of three have none of the first 3.
PREFIXES = [3 / 64, 22 / 64, 30 / 64, 32 / 64, 44 / 64, 1.0]

# What each case changes of the recipe, and its arm. 64 latents on 3 ranks are 22, 22 and 20.
CASES = {
    "batchtopk": ({}, "joint"),
    "topk": ({"sae": {"architecture": "topk", "b_enc": True}, "meta": {"architecture": "topk"}}, "joint"),
    "jumprelu": ({"sae": {"architecture": "jumprelu", "threshold": 0.3}}, "joint"),
    "relu": ({"sae": {"architecture": "relu", "l1": 0.05}}, "solo"),
    "balanced, adaptive, clipped": ({"train": {"balanced": True, "adaptive_sigma": True, "clip": 0.05}}, "joint"),
    "token, untied, attached": (
        {
            "sae": {"normalize": "token", "tied_init": False, "k_start": 6, "k_anneal": 0.5},
            "train": {"aux_residual": "attached", "k_aux": 40},
        },
        "joint",
    ),
    "raw, full, before": (
        {"meta": {"input": "raw"}, "train": {"meta_gradient": "full", "renormalise": "before"}},
        "joint",
    ),
    "control": ({"train": {"kernels": "reference", "meta_dead_after": 200}}, "control"),
    "sequential": ({}, "sequential"),
}

# Cases that go through the same step on two and on three ranks, and have more to send there.
FURTHER = {
    "matryoshka": ({"sae": {"architecture": "matryoshka", "prefixes": PREFIXES, "b_enc": True}}, "joint"),
    "matryoshka, reference, attached": (
        {
            "sae": {"architecture": "matryoshka", "prefixes": [0.1]},
            "train": {"kernels": "reference", "aux_residual": "attached", "k_aux": 40},
        },
        "joint",
    ),
    "ortsae": ({"train": {"penalties": {"ortsae": 0.5}, "lambda2": 0.0}}, "joint"),
    "c2r": ({"train": {"penalties": {"c2r": 5.0}}}, "joint"),
    "cofiring": ({"train": {"penalties": {"cofiring": 0.5}}}, "joint"),
    "all, now and then": (
        {
            "sae": {"architecture": "matryoshka", "prefixes": PREFIXES},
            "train": {
                "penalties": {"ortsae": 0.3, "c2r": 2.0, "cofiring": 0.3},
                "penalty_every": 2,
                "penalty_start": 0.3,
            },
        },
        "joint",
    ),
}


def all_trained(ranks, cases, steps):
    return {name: arm_trained(ranks, values(steps, **tables), arm) for name, (tables, arm) in cases.items()}


def assert_same(alone, found):
    for step, (loss, *losses) in enumerate(zip(alone["losses"], *(each["losses"] for each in found), strict=True)):
        for other in losses:
            np.testing.assert_allclose(other, loss, rtol=1e-6, atol=1e-12, err_msg=f"step {step}")
    for step, (one, first, *others) in enumerate(
        zip(alone["numbers"], *(each["numbers"] for each in found), strict=True)
    ):
        assert first.keys() == one.keys() and all(first == other for other in others), f"step {step}"
        for name, number in one.items():
            np.testing.assert_allclose(first[name], number, rtol=1e-5, atol=1e-9, err_msg=f"{name} at step {step}")
    for role in ("primary", "meta"):
        for step, (chosen, *parts) in enumerate(zip(alone[role], *(each[role] for each in found), strict=True)):
            assert np.array_equal(np.sort(np.concatenate(parts)), chosen), f"{role} step {step}"
    for name, tensor in alone["state"].items():
        first, *others = (each["state"][name] for each in found)
        # Adam divides by the gradient's own size, so where that is near zero rounding is a part of a step of 3e-4
        np.testing.assert_allclose(first, tensor, atol=3e-5, err_msg=name)
        assert all(np.array_equal(first, other) for other in others), f"{name} differs between ranks"


@pytest.mark.parametrize("size", [2, 3])
def test_every_kind_of_step_is_that_of_one_process(size):
    # every other case on two ranks and the rest on three; all on both would take a minute
    cases = {
        name: case for number, (name, case) in enumerate(CASES.items()) if name == "batchtopk" or number % 2 == size % 2
    }
    alone, found = all_trained(ALONE, cases, 10), on_ranks(size, all_trained, cases, 10)
    for name, one in alone.items():
        assert_same(one, [each[name] for each in found])
    # what the first case is there for did happen
    assert any(aux > 0 for _, aux, _, _ in alone["batchtopk"]["losses"])


@pytest.mark.parametrize("size", [2, 3])
def test_prefixes_and_further_penalties_are_those_of_one_process(size):
    alone, found = all_trained(ALONE, FURTHER, 10), on_ranks(size, all_trained, FURTHER, 10)
    for name, one in alone.items():
        assert_same(one, [each[name] for each in found])
        charged = {"ortsae", "c2r", "cofiring"} & (FURTHER[name][0].get("train", {}).get("penalties", {})).keys()
        steps = [
            number
            for number, numbers in enumerate(each for each in one["numbers"] if each)
            if charged and charged <= numbers.keys()
        ]
        assert steps == ([] if not charged else [4, 6, 8] if name == "all, now and then" else list(range(10))), name
        assert all(any(numbers.get(penalty, 0) > 0 for numbers in one["numbers"]) for penalty in charged)


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.parametrize("size", [2, 3])
def test_200_steps_choose_the_same_latents(size):
    cases = {name: CASES[name] for name in ("batchtopk", "topk", "jumprelu", "balanced, adaptive, clipped")}
    cases |= {name: FURTHER[name] for name in ("matryoshka", "ortsae", "c2r", "cofiring")}
    one, found = all_trained(ALONE, cases, 200), on_ranks(size, all_trained, cases, 200)
    for name in cases:
        assert len(one[name]["primary"]) == 200 and len(one[name]["meta"]) in (0, 150)
        assert_same(one[name], [each[name] for each in found])


@pytest.mark.parametrize(
    "penalties", [{}, {"ortsae": 0.1}, {"c2r": 1.0}, {"cofiring": 0.1}, {"ortsae": 0.1, "c2r": 1.0, "cofiring": 0.1}]
)
def test_bytes_per_step_are_those_of_the_formula(penalties):
    # an odd number of latents: one stretch is filled up
    sae = {"n": 63, "architecture": "matryoshka", "prefixes": PREFIXES} if len(penalties) == 3 else {}
    size, table = 2, values(16, sae=sae, train={"dead_after": 10_000, "penalties": penalties, "penalty_every": 2})
    recipe = Recipe.load(table)
    wanted = bytes_per_step(recipe, D, size, bf16=False)
    histogram = wanted.meta["meta threshold"] / 2
    ranks = on_ranks(size, arm_trained, table, "joint")
    firings = [max(len(each["primary"][step]) for each in ranks) for step in range(16)]
    for each in ranks:
        more = []
        for number, (action, sent) in list(enumerate(each["sent"]))[4:]:
            # the batch is made on every rank here, so no tokens are sent
            of_step = {name: n for name, n in getattr(wanted, action).items() if n and name != "tokens"}
            step = sum(earlier == "primary" for earlier, _ in each["sent"][:number])
            if action == "primary" and step % 2 == 0:
                of_step |= penalty_bytes(recipe, D, size, firings[step])
            assert sent.keys() == of_step.keys()
            for name, n in of_step.items():
                if name.endswith("threshold"):
                    # a further histogram whenever fewer entries than wanted lie above the cut, here with 64 tokens often;
                    # 8 bytes where there was no cut yet
                    more.append((sent[name] - n) // histogram)
                    assert (sent[name] - n) % histogram in (0, 8)
                else:
                    assert sent[name] == n, (action, name)
        assert set(more) <= {0, 1, 2} and np.mean(more) < 0.5


def test_prefixes_and_penalties_by_hand():
    """On 4 ranks: R = 1.5 of B = 8 rows of d = 5 in fp32, with 10 latents in stretches of 3."""
    values = {
        "sae": {"n": 10, "k": 2, "architecture": "matryoshka", "prefixes": [0.2, 0.5]},
        "meta": {"n": 4},
        "train": {"batch": 8},
    }
    found = bytes_per_step(Recipe.load(values), 5, 4, bf16=True)
    assert found.primary["reconstruction"] == 1.5 * 4 * 8 * 5 * 3 and found.further == {}
    further = {"train.penalties": {"ortsae": 1.0, "c2r": 1.0, "cofiring": 1.0}, "train.penalty_every": 5}
    every = bytes_per_step(Recipe.load(values, further), 5, 4, bf16=True)
    # rows of 3 latents once, their nearest, an even share of 16 firings; M of 5 x 5, and two pairs of sums
    assert every.further == {"penalty rows": 3 * (60 + 8 + 48 + 8 + 32 + 8), "penalty sums": 1.5 * (100 + 16 + 16)}
    assert every.per_primary_step == pytest.approx(found.per_primary_step + sum(every.further.values()) / 5)
    # of what costs nothing nothing is sent
    assert bytes_per_step(Recipe.load(values, {"train.penalties": {"c2r": 0.0}}), 5, 4, bf16=True).further == {}


def test_traffic_does_not_grow_with_the_latents():
    small, large = (
        bytes_per_step(Recipe.load({"sae": {"n": n, "k": 64}, "train": {"batch": 4096}}), 1280, 8, bf16=True)
        for n in (20_480, 65_536)
    )
    assert small.per_primary_step == large.per_primary_step
    # by hand: x_hat in fp32 around a ring of 8, and the tokens of the 7 others in bf16
    assert small.primary["reconstruction"] == 1.75 * 4 * 4096 * 1280 and small.primary["tokens"] == 7 * 512 * 1280 * 2
    assert small.replicated > 7 * small.per_primary_step and large.replicated > 20 * large.per_primary_step
