"""Recorded traces of the paper's algorithm, reproduced in fp32 with both kernel sets."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from metasae.recipe.recipe import Recipe
from metasae.train.trainer import Trainer

GOLDENS = Path(__file__).parents[3] / "shared" / "goldens"


def read(name):
    path = GOLDENS / f"{name}.safetensors"
    if not path.exists():
        pytest.skip("the golden traces are not beside this checkout")
    with safe_open(path, "pt") as file:
        return {key: file.get_tensor(key) for key in file.keys()}, json.loads(file.metadata()["config"])  # noqa: SIM118  (no dict)


def trainer_for(tensors, config, kernels):
    recipe = Recipe.load(
        {
            "sae": {"n": config["n_latents"], "k": config["k"], "normalize": "token", "b_dec_init": "zero"},
            "meta": {"n": config["n_meta"], "k": config["k_meta"], "input": "token"},
            "train": {
                "tokens": config["steps"] * config["batch"],
                "batch": config["batch"],
                "lambda2": config["lambda2"],
                "sigma_sq": config["sigma_sq"],
                "n_primary_steps": config["n_primary_steps"],
                "n_meta_steps": config["n_meta_steps"],
                "lr": config["lr"],
                "betas": [config["beta1"], config["beta2"]],
                "eps": config["eps"],
                "clip": 1e5,
                "k_aux": config["k_aux"],
                "aux_coef": config["aux_coef"],
                "aux_residual": config["aux_residual"],
                "dead_after": config["dead_after_batches"] * config["batch"],
                "meta_dead_after": config["meta_dead_after_batches"] * config["n_latents"],
                "renormalise": "before",
                "dtype": "fp32",
                "kernels": kernels,
            },
        }
    )
    trainer = Trainer(recipe, "joint" if config["lambda2"] > 0 else "control", 0, torch.zeros(config["d_in"]))
    for name, learner in (("primary", trainer.primary), ("meta", trainer.meta)):
        learner.weights.W_enc_ND.copy_(tensors[f"init.{name}.W_enc"].t())
        learner.weights.W_dec_ND.copy_(tensors[f"init.{name}.W_dec"])
        learner.weights.b_dec_D.copy_(tensors[f"init.{name}.b_dec"])
    return trainer


def assert_relative(ours, golden, tolerance, what):
    ours = torch.tensor(ours, dtype=torch.float64)
    assert ours.shape == golden.shape, what
    worst = ((ours - golden).abs() / golden.abs().clamp(min=1e-12)).max()
    worst_zero = ours[golden == 0].abs().max() if (golden == 0).any() else 0.0
    assert worst < tolerance or ((ours - golden).abs().max() < 1e-12), f"{what}: {worst}"
    assert worst_zero == 0, what


def first_gradients(trainer, x):
    """The gradients before they are clipped and projected, as the trace has them."""
    return trainer.primary_gradients(x)[2].tensors()


@pytest.mark.parametrize("kernels", ["reference", "fast"])
@pytest.mark.parametrize("name", ["joint_core", "solo_core", "joint_aux"])
def test_trace(name, kernels):
    tensors, config = read(name)
    trainer = trainer_for(tensors, config, kernels)
    trace = {
        key: [] for key in ("primary.l2", "primary.aux", "primary.penalty", "primary.loss", "meta.l2", "meta.loss")
    }
    batches = iter(tensors["batches"])
    gradients = first_gradients(trainer_for(tensors, config, kernels), tensors["batches"][0])
    while action := trainer.next_action():
        if action == "meta":
            losses = trainer.meta_step()
            trace["meta.l2"].append(float(losses.l2))
            trace["meta.loss"].append(float(losses.total))
            continue
        losses, _ = trainer.primary_step(next(batches))
        for key, value in (("l2", losses.l2), ("aux", losses.aux), ("penalty", losses.penalty), ("loss", losses.total)):
            trace[f"primary.{key}"].append(float(value))

    for key, values in trace.items():
        golden = tensors[f"trace.{key}"]
        if key == "primary.penalty" and config["lambda2"] == 0:
            continue  # the trace has zeros where the term is switched off; ours still reports mean p
        assert_relative(values, golden, 1e-5, f"{name} {key}")
    for sae, learner in (("primary", trainer.primary), ("meta", trainer.meta)):
        weights = learner.weights
        for key, ours in (("W_enc", weights.W_enc_ND.t()), ("W_dec", weights.W_dec_ND), ("b_dec", weights.b_dec_D)):
            assert (ours - tensors[f"final.{sae}.{key}"]).abs().max() < 1e-4, (sae, key)
    for key, ours in (
        ("W_enc", gradients["W_enc_ND"].t()),
        ("W_dec", gradients["W_dec_ND"]),
        ("b_dec", gradients["b_dec_D"]),
    ):
        assert (ours - tensors[f"step0.primary.{key}.grad"]).abs().max() < 1e-6, key
    if name == "joint_aux":
        assert max(trace["primary.aux"]) > 0
