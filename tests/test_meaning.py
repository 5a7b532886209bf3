"""Recipes whose values contradict each other: refused with both numbers, or said before the run."""

import json

import pytest

import metasae
from metasae import UserError
from metasae.recipe.meaning import notes_on, refuse_unmeasurable, refuse_what_cannot_be_meant
from metasae.recipe.recipe import Recipe, names
from metasae.recipe.resolve import resolve

MODEL = {"model": {"path": "somewhere"}}


@pytest.mark.parametrize(
    ("values", "says"),
    [
        (
            {"train.tokens": 50},
            "train.tokens = 50 is less than one batch of train.batch = 2,048 tokens; ask for more tokens or set "
            "train.batch=50 or less",
        ),
        ({"harvest.tokens": 2047}, "harvest.tokens = 2,047 is less than one batch of train.batch = 2,048"),
        ({"harvest.window_tokens": 100}, "harvest.window_tokens = 100 is less than one batch of train.batch = 2,048"),
        # 489 steps
        ({"train.n_primary_steps": 490}, "train.n_primary_steps = 490 is more than the 489 steps .* 'control'"),
        (
            {"train.penalty_start": 1.0},
            "train.penalty_start = 1 of 489 steps leaves no step with a penalty for 'joint'",
        ),
        ({"spikes.n": 4000}, "spikes.n = 4,000 known features are more than the sae.n = 3,072 latents"),
        ({"sae.k_start": 64, "sae.k_anneal": 0}, "sae.k_start = 64 has no effect with sae.k_anneal = 0"),
        ({"sae.k_start": 4000}, "k_start = 4000 must lie between k = 32 and n = 3072"),
        ({"measure.tokens": 127}, "measure.tokens = 127 is less than one window of text.context = 128 tokens"),
        ({"measure.calibration_tokens": 1}, "measure.calibration_tokens = 1 is less than one window"),
    ],
)
def test_what_cannot_be_meant_is_one_line_with_both_numbers(values, says):
    with pytest.raises(UserError, match=says) as refused:
        resolve(MODEL, None, values, "cpu")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "values",
    [
        {"train.tokens": 2048, "train.n_primary_steps": 1},
        {"train.warmup": 488},
        {"arms": ["solo"], "train.n_primary_steps": 1000, "train.penalty_start": 1.0},
        # its meta SAE learns after the primary
        {"arms": ["sequential"], "train.n_primary_steps": 1000},
        {"text.source": "planted", "measure.tokens": 100, "measure.calibration_tokens": 100},
    ],
)
def test_what_can_be_meant_is_taken(values):
    resolve(MODEL, None, values, "cpu")


@pytest.mark.parametrize(
    ("values", "says"),
    [
        (
            {"train.warmup": 489},
            "train.warmup = 489 steps is not shorter than the 489 steps of the training, so the learning rate",
        ),
        ({"train.warmup": 10_000}, "train.warmup = 10,000 steps is not shorter than the 489"),
        ({"train.warmup": 300, "train.decay": 0.5}, "warmup = 300 steps and train.decay = 0.5 of 489 steps overlap"),
        (
            {"train.dead_after": 1_000_000},
            "dead_after = 1,000,000 tokens, but the training has 1,000,000, so no latent",
        ),
        ({"train.meta_dead_after": 10**9}, "meta_dead_after = 1,000,000,000 rows, but the meta SAE reads 737,280"),
        ({"harvest.tokens": 2_000_000}, "harvest.tokens = 2,000,000, but training reads only train.tokens = 1,000,000"),
        ({"harvest.tokens": 4_000}, "train.tokens = 1,000,000 over harvest.tokens = 4,000 reads each token 250 times"),
        (
            {"sae.architecture": "matryoshka", "sae.prefixes": [0.01, 1.0]},
            "the first of sae.prefixes has 31 latents, fewer than the sae.k = 32",
        ),
        (
            {"train.penalty_every": 500, "train.penalties": {"ortsae": 0.1}},
            "penalty_every = 500 is more than the 489 steps",
        ),
        ({"meta.n": 3072}, "meta.n = 3,072 latents for sae.n = 3,072 decoder rows"),
        ({"measure.meta_k": 300}, "measure.meta_k = 300 is more than the 276 latents of a critic"),
        ({"measure.meta_n": 1.5}, "measure.meta_n = 1.5 gives a critic at least one latent per decoder row"),
        ({"measure.batch_topk": True, "measure.output_tokens": 0}, "measure.batch_topk has no effect"),
        ({"measure.labels": "labels.jsonl", "measure.concepts": 0}, "measure.labels has no effect"),
        ({"measure.side_effects": 5, "measure.across": False}, "measure.side_effects = 5 has no effect"),
    ],
)
def test_what_may_be_meant_is_said(values, says):
    quiet = {"train.dead_after": 100_000, "train.meta_dead_after": 100_000}
    before = notes_on(Recipe.load(MODEL, quiet))
    after = notes_on(Recipe.load(MODEL, quiet | values))
    assert before == [] and len(after) == 1 and says in after[0] and "\n" not in after[0]


def test_shipped_recipes_mean_what_they_say():
    for name in names():
        recipe = Recipe.load(name)
        refuse_what_cannot_be_meant(recipe)
        refuse_unmeasurable(recipe)
        doubts = [note for note in notes_on(recipe) if note not in recipe.notes]
        assert not doubts, name


def test_a_text_that_fills_no_batch_is_refused(build, stories, tmp_path, no_drawing):
    path = tmp_path / "x.jsonl"
    path.write_text("".join(json.dumps(story) + "\n" for story in stories))
    values = {
        "model": {"path": str(build("gpt2")), "dtype": "fp32"},
        "hook": {"point": "blocks.1.hook_resid_pre"},
        "text": {"source": str(path), "context": 16, "calibration_share": 0.49, "evaluation_share": 0.49},
        "sae": {"n": 64, "k": 4},
        "train": {"tokens": 100_000, "batch": 2048},
        "measure": {"tokens": 100, "calibration_tokens": 100},
        "arms": ["solo"],
    }
    with pytest.raises(
        UserError, match=r"gives \d+ training tokens, less than one batch of train.batch = 2,048; use a"
    ):
        metasae.run(values, tmp_path / "run", show=False)


def test_a_sweep_refuses_such_a_cell(build, tmp_path):
    from metasae.sweep.launch import sweep

    model = {"model.path": str(build("gpt2")), "text.source": "docs"}
    with pytest.raises(UserError, match=r"train.n_primary_steps = 900 is more than the 489 steps"):
        sweep("local", ["train.n_primary_steps=10,900"], out=tmp_path / "sweep", overrides=model, show=False)
