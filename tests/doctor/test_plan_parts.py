"""The parts of a step, their floors, and what a rank sends, by hand."""

import pytest

from metasae.doctor.cards import Card
from metasae.doctor.gpus import parts_of, sent_bytes
from metasae.recipe.recipe import Recipe

# 1 GFLOP/s in bf16, a quarter of that in fp32, 1 MB/s.
SLOW = Card("slow", 1e9, 5e8, 2.5e8, 1e6, 1e9, 1e5)
D = 8


@pytest.fixture
def recipe():
    train = {"batch": 64, "n_primary_steps": 10, "n_meta_steps": 5}
    return Recipe.load(
        {"sae": {"n": 100, "k": 4}, "meta": {"n": 10, "k": 2}, "train": train, "arms": ["solo", "control", "joint"]}
    )


def test_products_and_bytes_by_hand(recipe):
    nd, bd, md, products = 100 * D, 64 * D, 10 * D, 2 * 100 * 10 * D
    rows = 4 * D * 64 * 4
    assert [(part.name, part.products, part.moved, part.gathered) for part in parts_of(recipe, D, "joint")] == [
        ("encode and select", 2 * 64 * nd, 8 * nd, 0),
        ("residual and entry gradients", 0, 4 * nd + 8 * bd, 2 * rows),
        ("weight gradients", 0, 8 * nd + 8 * bd, 2 * rows),
        ("clip and Adam", 0, 64 * nd, 0),
        ("penalty", products, 20 * nd + 8 * md, 4 * nd * 2),
        ("meta steps", products / 2, 8 * nd + 8 * md, 2 * 4 * nd * 2),
        ("meta clip and Adam", 0, 32 * md, 0),
    ]


def test_ranks_divide_what_has_latents_and_nothing_else(recipe):
    """100 latents on 3 ranks: 34 on the first."""
    for whole, part in zip(parts_of(recipe, D, "joint"), parts_of(recipe, D, "joint", 3), strict=True):
        assert part.products == pytest.approx(0.34 * whole.products)
        assert part.gathered == pytest.approx(0.34 * whole.gathered)
        tokens = 8 * 64 * D * (part.name in ("residual and entry gradients", "weight gradients"))
        meta = {"penalty": 8 * 10 * D, "meta steps": 8 * 10 * D, "meta clip and Adam": whole.moved}.get(part.name, 0)
        assert part.moved == pytest.approx(0.34 * (whole.moved - tokens - meta) + tokens + meta)


def test_a_part_takes_the_longer_of_products_and_bytes(recipe):
    encode, *_ = parts_of(recipe, D, "solo")
    assert encode.floor(SLOW, 2) == pytest.approx(max(2 * 64 * 800 / 1e9, 8 * 800 / 1e6)) == pytest.approx(6.4e-3)
    assert encode.floor(Card("s", 1e6, 1, 1e5, 1e6, 1, 1), 4) == pytest.approx(2 * 64 * 800 / 1e5)


def test_arms_without_a_penalty_or_a_meta_sae_have_fewer_parts(recipe):
    names = {
        arm: [part.name for part in parts_of(recipe, D, arm)] for arm in ("solo", "control", "joint", "sequential")
    }
    assert names["solo"] == names["joint"][:4]
    assert names["control"] == names["sequential"] == [name for name in names["joint"] if name != "penalty"]
    free = Recipe.load(recipe.model_dump(mode="json"), {"train.lambda2": 0.0})
    assert [part.name for part in parts_of(free, D, "joint")] == names["solo"]


def test_prefixes_and_further_penalties_by_hand(recipe):
    """Three prefixes; every second step two further penalties, of 34 latents of 100 on the first of 3 ranks."""
    od, bd = 34 * D, 64 * D
    further = {"train.penalties": {"ortsae": 0.1, "c2r": 0.1, "cofiring": 0.0}, "train.penalty_every": 2}
    # C2R multiplies the rank's 34 rows with all 100, OrtSAE with those of a chunk, which are more
    products = 2 * 34 * (100 + 100) * D / 2
    prefixes = {"sae.architecture": "matryoshka", "sae.prefixes": [0.1, 0.5]}
    nested = Recipe.load(recipe.model_dump(mode="json"), prefixes | further)
    _, residual, weights, _, penalties, *_ = parts_of(nested, D, "joint", 3)
    assert residual.moved == 4 * od + 16 * bd and weights.moved == 8 * od + 16 * bd
    assert (penalties.products, penalties.moved, penalties.gathered) == (products, 4 * 100 * D + 8 * od, 0)
    names = [part.name for part in parts_of(nested, D, "control", 3)]
    assert names == [part.name for part in parts_of(recipe, D, "control", 3)]


def test_what_a_rank_sends_by_hand(recipe):
    """On 4 ranks: R = 1.5, 16 tokens and 25 latents a rank, activations in bf16; a meta step for every second primary
    one.
    """
    tokens, reconstruction, meta = 3 * 16 * D * 2, 1.5 * 4 * 64 * D, 1.5 * 4 * (2 * 10 * D + D)
    assert sent_bytes(recipe, D, "solo", 4) == tokens + reconstruction
    assert sent_bytes(recipe, D, "control", 4) == sent_bytes(recipe, D, "joint", 4)
    assert sent_bytes(recipe, D, "joint", 4) == tokens + reconstruction + 0.5 * meta
    assert sent_bytes(recipe, D, "joint", 1) == 0

    def more(overrides, arm, width=2):
        changed = Recipe.load(recipe.model_dump(mode="json"), overrides)
        return sent_bytes(changed, D, arm, 4, width) - sent_bytes(recipe, D, arm, 4, width)

    assert more({"sae.architecture": "matryoshka", "sae.prefixes": [0.1, 0.5]}, "solo") == 2 * reconstruction
    # every rank's four largest entries of each token
    assert more({"sae.architecture": "topk"}, "solo", 4) == 3 * 64 * 4 * 4
    assert more({"sae.architecture": "relu"}, "solo") == more({"sae.architecture": "jumprelu"}, "solo") == 0
    # all decoder rows, every fifth step, of the arm that is charged
    further = {"train.penalties": {"ortsae": 1.0, "cofiring": 1.0}, "train.penalty_every": 5}
    assert more(further, "joint") == pytest.approx(3 * 4 * 25 * D / 5) and more(further, "control") == 0
    assert more({"train.penalties": {"c2r": 0.0}}, "joint") == 0


def test_what_is_sent_does_not_grow_with_the_latents():
    tables = [{"sae": {"n": n, "k": 64}, "train": {"batch": 4096}} for n in (20_480, 65_536)]
    small, large = (sent_bytes(Recipe.load(values), 1280, "joint", 8) for values in tables)
    # a copy of the SAE on every rank would send all gradients
    assert small == large < 1.75 * 8 * 20_480 * 1280 / 6


@pytest.mark.parametrize(
    ("name", "d", "milliseconds"), [("paper-gpt2-large", 1280, 1.00), ("paper-gemma2-9b", 3584, 11.6)]
)
def test_the_sums_of_the_page_on_scaling(name, d, milliseconds):
    """At the rates of that page, 790 TFLOP/s and 4 TB/s."""
    there = Card("page", 790e12, 395e12, 60e12, 4e12, 141e9, 450e9)
    assert 1e3 * sum(part.floor(there, 2) for part in parts_of(Recipe.load(name), d, "joint")) == pytest.approx(
        milliseconds, rel=0.01
    )
