"""Sizes by arithmetic against the files and the memory they stand for."""

import json
import os
import subprocess
import sys

import pytest
import torch

from metasae.doctor import estimate
from metasae.recipe.recipe import Recipe
from metasae.sae.gradients import matmul_dtype

MB = 1 << 20


def data_bytes(file):
    """Bytes of a safetensors file without its header."""
    with open(file, "rb") as handle:
        return file.stat().st_size - 8 - int.from_bytes(handle.read(8), "little")


@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
def test_the_cache_is_exact(load, stories, tmp_path, dtype):
    from metasae.data.cache.activations import harvest

    recipe = Recipe.load(
        {
            "text": {"context": 32, "calibration_share": 0.2, "evaluation_share": 0.2},
            "harvest": {"dtype": dtype, "shard_tokens": 700},
            "train": {"tokens": 2000},
            "measure": {"tokens": 900, "calibration_tokens": 800},
        }
    )
    harvest(
        load("gpt2", "blocks.1.hook_resid_pre"),
        recipe.text,
        recipe.harvest,
        tmp_path,
        recipe.split_tokens,
        documents=stories,
    )
    written = sum(data_bytes(file) for file in tmp_path.glob("*-?????.safetensors"))
    assert written == estimate.cache_bytes(recipe, 32) == 3700 * (32 * {"bf16": 2, "fp32": 4}[dtype] + 16)


def test_an_sae_and_a_checkpoint_are_exact(batches, small_recipe, tmp_path):
    from metasae.train import checkpoint
    from metasae.train.trainer import Trainer

    recipe = small_recipe()
    trainer, source = Trainer(recipe, "joint", 0, torch.zeros(16)), batches()
    trainer.primary_step(source.next())
    trainer.meta_step()
    checkpoint.save(trainer, [{}], 0, tmp_path)
    steps = 4 * 6  # Adam counts its steps once per tensor
    assert data_bytes(tmp_path / checkpoint.FILE) == estimate.checkpoint_bytes(recipe, 16) + steps
    sae = trainer.export(1.0, {})["primary"]
    sae.threshold = torch.zeros(48)
    sae.save(tmp_path / "sae")
    assert (
        data_bytes(tmp_path / "sae" / "sae_weights.safetensors")
        == estimate.sae_bytes(48, 16)
        == 4 * (2 * 48 * 16 + 2 * 48 + 16)
    )


def test_the_run_folder_by_hand():
    recipe = Recipe.load(
        {
            "sae": {"n": 100, "k": 5}, "meta": {"n": 10, "k": 2}, "arms": ["solo", "joint"], "seeds": 3,
            "measure": {"tokens": 1000, "keep_firings": True},
        }
    )  # fmt: skip
    primary, meta = 4 * (2 * 100 * 8 + 200 + 8), 4 * (2 * 10 * 8 + 20 + 8)
    arm = primary + 1000 * (8 * 5 + 20) + estimate.SMALL_FILES
    checkpoint = 12 * (2 * 100 * 8 + 8) + 16 * 100 + 12 * (2 * 10 * 8 + 8) + 16 * 10
    assert estimate.run_folder_bytes(recipe, 8) == 3 * (2 * arm + meta) + 2 * checkpoint


def test_windows_by_hand():
    """1000 tokens and a pool of 16 batches of 50, twice on a GPU; calibration and evaluation stay in the cache."""
    values = {
        "harvest": {"window_tokens": 1000, "batch_tokens": 50}, "arms": ["solo", "joint"], "seeds": 3,
        "train": {"tokens": 5000}, "measure": {"tokens": 300, "calibration_tokens": 200},
    }  # fmt: skip
    recipe, whole = Recipe.load(values), Recipe.load(values, {"harvest.window_tokens": 0})
    here, there = (estimate.needs(recipe, 8, 1000, on_gpu=on_gpu) for on_gpu in (False, True))
    assert here.cache == 500 * (8 * 2 + 16) and estimate.cache_bytes(whole, 8) == 5500 * (8 * 2 + 16)
    assert here.windows == 1800 * (8 * 2 + 16) and there.windows == 2 * here.windows
    assert estimate.needs(whole, 8, 0, on_gpu=True).windows == 0
    # every one of six arms keeps its checkpoint, and one is written anew
    assert here.run_folder - here.windows == estimate.run_folder_bytes(whole, 8) + 5 * estimate.checkpoint_bytes(
        whole, 8
    )
    # the next window is harvested while an arm trains
    assert there.gpu == 1000 + there.forward + there.train


def test_an_arm_without_a_meta_sae_needs_less():
    cases = (("solo", 0.3), ("joint", 0.3), ("joint", 0.0))
    solo, joint, free = (Recipe.load({"arms": [arm], "train": {"lambda2": weight}}) for arm, weight in cases)
    for size in (
        estimate.checkpoint_bytes,
        estimate.run_folder_bytes,
        lambda recipe, d: estimate.train_bytes(recipe, d, 2),
    ):
        assert size(solo, 64) == size(free, 64) < size(joint, 64)


def test_on_a_gpu_the_model_and_training_are_not_in_the_processors_memory():
    recipe = Recipe.load("demo")
    here, there = (estimate.needs(recipe, 384, 500 * MB, on_gpu=on_gpu) for on_gpu in (False, True))
    assert here.gpu == 0 and there.gpu == 500 * MB + max(there.forward, there.train)
    assert here.memory - there.memory == 500 * MB + here.forward + max(here.train, here.measure) - here.measure


CHILD = """
import json, sys, torch
from metasae.device import keep_freed_memory
from metasae.doctor.machine import peak_resident
from metasae.recipe.recipe import Recipe
from metasae.train.trainer import Trainer
keep_freed_memory()
warm = Trainer(Recipe.load({"sae": {"n": 64}, "meta": {"n": 8}}), "joint", 0, torch.zeros(8))
warm.primary_step(torch.randn(64, 8)), warm.meta_step()
before = peak_resident()
recipe = Recipe.load(json.loads(sys.argv[1]))
trainer = Trainer(recipe, recipe.arms[0], 0, torch.zeros(512))
for _ in range(3):
    trainer.primary_step(torch.randn(recipe.train.batch, 512))
    trainer.meta and trainer.meta_step()
print(peak_resident() - before)
"""


@pytest.mark.slow
@pytest.mark.parametrize(("arm", "n", "batch"), [("solo", 8192, 8192), ("joint", 16384, 256)], ids=["batch", "rows"])
def test_memory_of_training_is_that_of_a_process_that_trains(arm, n, batch):
    """Large enough that what the libraries allocate for themselves counts little."""
    values = {"sae": {"n": n, "k": 16}, "meta": {"n": n // 11}, "train": {"batch": batch}, "arms": [arm]}
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", CHILD, json.dumps(values)], capture_output=True, text=True, env=environment
    )
    width = matmul_dtype("auto", torch.device("cpu")).itemsize
    assert estimate.train_bytes(Recipe.load(values), 512, width)[0] == pytest.approx(int(done.stdout), rel=0.3), (
        done.stderr
    )
