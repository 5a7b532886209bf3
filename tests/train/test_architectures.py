"""Every architecture's closed-form step against autograd on its own equations; control = solo; export; planted
recovery.
"""

import functools
import importlib
import importlib.util
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from scipy.optimize import linear_sum_assignment

from metasae.recipe.recipe import Recipe
from metasae.recipe.registry import ARCHITECTURES
from metasae.sae.architectures import Options, architecture
from metasae.sae.gradients import Arithmetic, forward, sae_gradients
from metasae.sae.kernels import kernels, reference
from metasae.sae.sae import SAE
from metasae.sae.weights import Weights
from metasae.train.loop import train
from metasae.train.trainer import Trainer
from sources import Batches, Planted

N, D, K = 40, 16, 3
OPTIONS = Options(K, l1=0.03, l0_coef=0.7, bandwidth=0.6, threshold=0.4, prefixes=(0.1, 0.5, 1.0), l0="free")


class Jump(torch.autograd.Function):
    """pre * H(pre - theta) with the rectangle's pseudo-derivative for theta."""

    @staticmethod
    def forward(ctx, pre, theta, eps):
        ctx.save_for_backward(pre, theta)
        ctx.eps = eps
        return pre * (pre > theta) * (pre > 0)

    @staticmethod
    def backward(ctx, slope):
        pre, theta = ctx.saved_tensors
        inside = ((pre - theta).abs() < ctx.eps / 2) & (pre > 0)
        return slope * (pre > theta) * (pre > 0), (-(theta / ctx.eps) * inside * slope).sum(0), None


class Step(torch.autograd.Function):
    """H(pre - theta), likewise."""

    @staticmethod
    def forward(ctx, pre, theta, eps):
        ctx.save_for_backward(pre, theta)
        ctx.eps = eps
        return ((pre > theta) & (pre > 0)).to(pre.dtype)

    @staticmethod
    def backward(ctx, slope):
        pre, theta = ctx.saved_tensors
        inside = ((pre - theta).abs() < ctx.eps / 2) & (pre > 0)
        return None, (-(1 / ctx.eps) * inside * slope).sum(0), None


def price_of(l2, l0, log_threshold_N):
    """The multiplier P at which a move of all log-thresholds together leaves l2 + P l0 as it is, in autograd."""
    down, less = (
        torch.autograd.grad(value, log_threshold_N, retain_graph=True, allow_unused=True)[0] for value in (l2, l0)
    )
    return 0.0 if less is None or not less.any() else float(-down.sum() / less.sum())


def random_weights(seed, with_threshold):
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(N, D, generator=generator)
    rows /= rows.norm(dim=1, keepdim=True)
    b_dec, b_enc = 0.2 * torch.randn(D, generator=generator), 0.1 * torch.randn(N, generator=generator)
    theta = torch.log(0.3 + 0.3 * torch.rand(N, generator=generator)) if with_threshold else None
    return Weights(rows + 0.1 * torch.randn(N, D, generator=generator), rows, b_dec, b_enc, theta)


def spec(name, x, w, options):
    """(L2, the sparsity loss, all that is differentiated), in plain autograd."""
    pre = (x - w.b_dec_D) @ w.W_enc_ND.t() + w.b_enc_N
    a = torch.relu(pre)

    def masked(kept):
        return a * kept.with_values(torch.ones_like(kept.values)).dense()

    extra = 0.0
    if name in ("batchtopk", "matryoshka"):
        z = masked(reference.select(a.detach(), K * len(x))[0])
    elif name == "topk":
        z = masked(reference.select_rows(a.detach(), K))
    elif name == "relu":
        z = a
        extra = options.l1 * z.sum() / len(x)
    else:
        theta = w.log_threshold_N.exp()
        z = Jump.apply(pre, theta, options.bandwidth)
        l0 = Step.apply(pre, theta, options.bandwidth).sum() / len(x)
        extra = options.l0_coef * (l0 / K - 1) ** 2
    ends = (4, 20, 40) if name == "matryoshka" else (N,)
    l2 = sum((z[:, :end] @ w.W_dec_ND[:end] + w.b_dec_D - x).pow(2).mean() for end in ends) / len(ends)
    priced = price_of(l2, l0, w.log_threshold_N) * l0 if name == "jumprelu" and options.l0 == "k" else 0.0
    return l2, extra, l2 + extra + priced


@pytest.mark.parametrize("kernel", ["reference", "fast"])
@pytest.mark.parametrize("case", ["random", "zero", "one token", "large"])
@pytest.mark.parametrize("name, l0", [*((name, "free") for name in ARCHITECTURES), ("relu", "k"), ("jumprelu", "k")])
def test_gradients_equal_autograd(name, l0, case, kernel):
    options = replace(OPTIONS, l0=l0)
    x = torch.randn(24, D, generator=torch.Generator().manual_seed(5)) * (10 if case == "large" else 1)
    x = {"zero": torch.zeros_like(x), "one token": x[:1]}.get(case, x)
    weights = random_weights(1, name == "jumprelu")
    leaves = Weights(**{key: tensor.clone().requires_grad_() for key, tensor in weights.tensors().items()})
    l2, extra, total = spec(name, x, leaves, options)
    total.backward()

    kind, how = architecture(name, options), Arithmetic(kernels(kernel), torch.float32)
    passed = forward(x, weights, kind, K, 0.0, how)
    gradients = sae_gradients(passed, weights, kind, None, how)
    torch.testing.assert_close(gradients.l2, l2.detach(), rtol=1e-5, atol=1e-8)
    torch.testing.assert_close(gradients.sparsity, torch.as_tensor(extra).detach().float(), rtol=1e-5, atol=1e-8)
    for key, gradient in gradients.weights.tensors().items():
        wanted = getattr(leaves, key).grad
        wanted = torch.zeros_like(gradient) if wanted is None else wanted
        scale = float(wanted.abs().max()) + 1e-6
        torch.testing.assert_close(
            gradient / scale, wanted / scale, rtol=1e-4, atol=1e-5, msg=lambda text, key=key: f"{key}: {text}"
        )


def test_matryoshka_prefixes_by_hand():
    assert architecture("matryoshka", Options(3, prefixes=(0.25, 0.5, 1.0))).ends(8) == (2, 4, 8)
    assert architecture("matryoshka", Options(3, prefixes=(0.01,))).ends(8) == (1, 8)
    assert architecture("batchtopk", Options(3, prefixes=(0.25,))).ends(8) == (8,)


def recipe(**tables):
    train_ = {
        "tokens": 64 * 24,
        "batch": 64,
        "n_primary_steps": 4,
        "n_meta_steps": 2,
        "dead_after": 500,
        "k_aux": 4,
        **tables.pop("train", {}),
    }
    meta = {"n": 8, "k": 2, **tables.pop("meta", {})}
    return Recipe.load({"sae": {"n": 48, "k": 3, **tables.pop("sae", {})}, "meta": meta, "train": train_})


def run(values, arm, folder, batches):
    from metasae.progress.progress import Task

    trainer = Trainer(values, arm, 0, torch.full((16,), 0.3))
    train(trainer, batches(), folder, Task(None, None))
    return trainer


@pytest.mark.parametrize("name", list(ARCHITECTURES))
def test_control_equals_solo_bit_for_bit(name, batches, tmp_path):
    values = recipe(sae={"architecture": name}, meta={"architecture": name})
    solo, control, joint = (run(values, arm, tmp_path / arm, batches) for arm in ("solo", "control", "joint"))
    for key, tensor in solo.primary.weights.tensors().items():
        assert torch.equal(tensor, getattr(control.primary.weights, key)), key
    assert not torch.equal(solo.primary.weights.W_dec_ND, joint.primary.weights.W_dec_ND)


# long enough for latents to die and for every kind of penalty to be charged several times
TRAINED = {"penalty_every": 2, "tokens": 64 * 30}


@functools.cache
def solo_rows(name):
    """solo's decoder rows, which no penalty changes."""
    values = recipe(sae={"architecture": name, "b_enc": True}, train=TRAINED)
    with tempfile.TemporaryDirectory() as folder:
        return run(values, "solo", Path(folder), Batches).primary.weights.W_dec_ND


@pytest.mark.parametrize(
    "penalty",
    [{}, {"ortsae": 0.2}, {"c2r": 5.0}, {"firing_cosine": 5.0}, {"cofiring": 0.2}, {"ortsae": 0.1, "cofiring": 0.1}],
)
@pytest.mark.parametrize("name", list(ARCHITECTURES))
def test_every_architecture_with_every_penalty_trains_and_saves(name, penalty, batches, tmp_path):
    values = recipe(sae={"architecture": name, "b_enc": True}, train={"penalties": penalty, **TRAINED})
    trainer = run(values, "joint", tmp_path / "joint", batches)
    saes = trainer.export(1.5, {})
    for role, sae in saes.items():
        if sae.threshold is None:
            sae.threshold = torch.full((sae.n_latents,), 0.1)
        sae.save(tmp_path / role)
        again = SAE.load(tmp_path / role)
        x = torch.randn(7, 16)
        assert torch.equal(again(x), sae(x))
        assert torch.isfinite(sae(x)).all()
        assert (sae.W_dec.norm(dim=1) - 1).abs().max() < 1e-6
        if importlib.util.find_spec("sae_lens"):
            theirs = importlib.import_module("sae_lens").SAE.load_from_disk(str(tmp_path / role))
            torch.testing.assert_close(theirs(x), sae(x), rtol=1e-5, atol=1e-5)
    assert not torch.equal(solo_rows(name), trainer.primary.weights.W_dec_ND)


# A large step and a strong auxiliary loss: a few hundred thousand tokens of a toy world are few.
PLANTED = {
    "tokens": 128 * 1200,
    "batch": 128,
    "lr": 2e-2,
    "decay": 0.6,
    "warmup": 50,
    "dead_after": 5000,
    "aux_coef": 0.25,
}


@pytest.mark.parametrize("name", ["batchtopk", "matryoshka"])
def test_planted_features_are_recovered(name, tmp_path):
    from metasae.progress.progress import Task

    values = Recipe.load(
        {
            "sae": {"n": 128, "k": 3, "architecture": name, "prefixes": [0.75, 1.0]},
            "train": {**PLANTED, "dtype": "fp32"},
        }
    )
    source = Planted(batch=PLANTED["batch"])
    mean = torch.stack([source.next().mean(0) for _ in range(20)]).mean(0)
    trainer = Trainer(values, "solo", 0, mean)
    train(trainer, source, tmp_path, Task(None, None))
    cosines = (source.directions @ trainer.primary.weights.W_dec_ND.t()).abs()
    rows, columns = linear_sum_assignment(-cosines.numpy())
    recovered = (cosines[rows, columns] > 0.95).float().mean()
    assert recovered >= 0.95, f"{recovered:.2f} of the features recovered"
