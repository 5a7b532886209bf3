"""Runs that start from an existing SAE (`train.init`): ours and another library's, resumed, refused, and measured."""

import json
import shutil

import pytest
import torch

import metasae
from drawing import undrawn
from metasae.errors import UserError
from metasae.interop import export
from metasae.jobs.init import read_init, recipe_within, refuse_other_width
from metasae.jobs.start import _refuse_seen
from metasae.recipe.recipe import Recipe
from metasae.sweep import sweep

SMALL = {
    "planted.d": 24, "planted.independent": 30, "planted.words": 4, "sae.n": 48, "sae.k": 3, "meta.n": 6,
    "train.tokens": 256 * 20, "train.batch": 256, "train.dtype": "fp32", "measure.tokens": 2000,
    "measure.calibration_tokens": 1000, "measure.critics": 1, "measure.meta_steps": 10, "arms": ["solo"], "seeds": 1,
}  # fmt: skip


def planted(out, **overrides):
    with undrawn():
        return metasae.run("planted", out=out, overrides=SMALL | overrides, show=False)


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    return planted(tmp_path_factory.mktemp("first") / "a")


@pytest.fixture(scope="module")
def second(first, tmp_path_factory):
    init = str(first.folder / "arms" / "solo-s0")
    return planted(tmp_path_factory.mktemp("second") / "b", **{"train.init": init, "arms": ["solo", "atomic"]})


def test_the_start_is_measured_beside_the_arms(first, second):
    assert list(second.comparison["arms"]) == ["solo", "atomic", "init"]
    before, after = (run.saes[name, 0] for run, name in ((first, "solo"), (second, "init")))
    for name in ("W_enc", "W_dec", "b_enc", "b_dec", "threshold"):
        torch.testing.assert_close(getattr(after, name), getattr(before, name), rtol=0, atol=0)
    assert after.config.metadata["calibration"]["rule"] == "own"
    notes = after.config.metadata["metasae"]
    assert (notes["arm"], notes["seed"]) == ("init", 0) and notes["init"] == str(first.folder / "arms" / "solo-s0")
    fvu = [run.comparison["arms"][arm]["means"]["fidelity.fvu"] for run, arm in ((first, "solo"), (second, "init"))]
    assert fvu[0] == pytest.approx(fvu[1], rel=1e-5)
    # 20 steps more are better than none, and latent i is still latent i
    assert second.comparison["arms"]["solo"]["means"]["fidelity.fvu"] < fvu[1]
    assert torch.cosine_similarity(second.saes["solo", 0].W_dec, before.W_dec).median() > 0.8


def test_seeds_that_start_from_one_sae_do_not_tell_whether_training_was_long_enough(second):
    assert second.comparison["trained"]["r"] is None and second.comparison["trained"]["enough"] is not True


def test_a_run_that_goes_on_needs_the_original_no_more(first, tmp_path):
    shutil.copytree(first.folder / "arms" / "solo-s0", tmp_path / "sae")
    overrides = {"train.init": str(tmp_path / "sae"), "seeds": 2, "measure.across": False}
    whole = planted(tmp_path / "whole", **overrides | {"measure.explorer": False})
    begun = planted(tmp_path / "begun", **overrides | {"measure.explorer": False, "seeds": 1})
    shutil.rmtree(tmp_path / "sae")
    assert begun.saes["init", 0] is not None
    resumed = planted(tmp_path / "begun", **overrides | {"measure.explorer": False})
    for seed in (0, 1):
        weights = whole.saes["solo", seed].state_dict(), resumed.saes["solo", seed].state_dict()
        assert all(torch.equal(tensor, weights[1][name]) for name, tensor in weights[0].items())


@pytest.mark.parametrize("format", ["saelens", "sparsify"])
def test_an_sae_of_another_format(first, tmp_path, format):
    sae = first.saes["solo", 0]
    if format == "sparsify":
        sae.config.rule, sae.threshold = "topk", torch.zeros(48)
    place = export(sae, format, tmp_path / "theirs")
    read = read_init(Recipe.load("planted", SMALL | {"train.init": str(place)}))
    assert torch.allclose(read.W_dec, sae.W_dec) and torch.allclose(read.b_dec, sae.b_dec)


def test_what_does_not_fit_is_refused_with_both_numbers(first, tmp_path):
    init = str(first.folder / "arms" / "solo-s0")

    def refused(words, **overrides):
        with pytest.raises(UserError, match=words):
            planted(tmp_path / "refused", **{"train.init": init} | overrides)
        assert not (tmp_path / "refused" / "arms").exists()

    refused(r"has 48 latents, and sae\.n = 64; set sae\.n=48", **{"sae.n": 64})
    refused(r"does not normalise each token, and sae\.normalize = 'token'", **{"sae.normalize": "token"})
    refused(r"reads vectors of width 24, and these activations have 32", **{"planted.d": 32})
    refused("no SAE at", **{"train.init": str(tmp_path / "nowhere")})
    refused("is no SAE of a known format", **{"train.init": str(tmp_path)})


def test_another_hook_point_or_width_of_a_model_is_refused(first):
    sae, recipe = first.saes["solo", 0], Recipe.load("demo", {"hook.point": "encoder.layer.3", "train.init": "theirs"})
    with pytest.raises(UserError, match=r"width 24, and hook\.point = encoder\.layer\.3 gives 384"):
        refuse_other_width(sae, 384, recipe)


def test_a_hook_point_that_the_sae_does_not_name_is_refused(first, tmp_path):
    shutil.copytree(first.folder / "arms" / "solo-s0" / "primary", tmp_path / "sae")
    config = json.loads((tmp_path / "sae" / "cfg.json").read_text())
    config["metadata"] = {"hook_name": "blocks.8.hook_resid_pre", "trained_architecture": "batchtopk"}
    (tmp_path / "sae" / "cfg.json").write_text(json.dumps(config))
    values = {"sae": {"n": 48, "k": 3}, "train": {"init": str(tmp_path / "sae")}}
    at = {"hook": {"point": "blocks.3.hook_resid_pre"}}
    with pytest.raises(UserError, match=r"trained at blocks\.8\.hook_resid_pre, and hook\.point = blocks\.3"):
        read_init(Recipe.load(values | at))
    # what leaves a block is what enters the next
    assert read_init(Recipe.load(values | {"hook": {"point": "blocks.7.hook_resid_post"}})).n_latents == 48


def test_the_run_is_measured_again_with_its_start(second, tmp_path):
    with undrawn():
        again = metasae.measure(second.folder, out=tmp_path / "again", show=False)
    assert list(again.comparison["arms"]) == ["solo", "atomic", "init"]


def test_an_sae_that_was_trained_on_what_would_be_judged_is_refused(first, tmp_path):
    shutil.copytree(first.folder / "arms" / "solo-s0" / "primary", tmp_path / "sae")
    config = json.loads((tmp_path / "sae" / "cfg.json").read_text())
    text = {"source": "machine", "calibration_share": 0.01, "evaluation_share": 0.01}
    trained_by = Recipe.load({"text": text}).model_dump(mode="json")
    config["metadata"]["metasae"]["recipe"] = trained_by
    (tmp_path / "sae" / "cfg.json").write_text(json.dumps(config))
    values = {"sae": {"n": 48, "k": 3}, "train": {"init": str(tmp_path / "sae")}, "model": {"path": str(tmp_path)}}
    recipe = Recipe.load(values | {"hook": trained_by["hook"], "text": {"source": "machine"}})
    with pytest.raises(UserError, match="was trained on documents that would be used for measuring"):
        _refuse_seen(recipe.train.init, recipe_within(read_init(recipe)), recipe)


def test_a_sweep_starts_afresh(first, tmp_path):
    with pytest.raises(UserError, match="a sweep cannot start from an existing SAE"):
        sweep("planted", out=tmp_path / "sweep", grid=["train.lambda2=0,0.1"], overrides={"train.init": "x"})
