"""Births: the statistics against slow loops, the decision on latents whose truth is known, and what is written."""

import numpy as np
import pytest
import torch

from metasae.recipe.recipe import Recipe
from metasae.recipe.tables import Births as Spec
from metasae.sae.gradients import Prefixes, Reconstruction
from metasae.sae.kernels import kernels
from metasae.sae.kernels.kept import Kept
from metasae.sae.spread import WHOLE
from metasae.train import checkpoint
from metasae.train.moves.births import TURN, Births, chosen, evidence, two_values
from metasae.train.moves.newborn import RIDGE, twins
from metasae.train.trainer import Trainer

D = 6


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


class Slow:
    """The equations of the page, token by token, in float64."""

    def __init__(self, axes, n, d):
        self.v, self.n = axes.astype(np.float64), n
        self.rho = [[] for _ in range(n)]
        self.z = [[] for _ in range(n)]
        self.tokens = 0

    def look(self, z_BN, r_BD, W_ND):
        for i in range(self.n):
            self.v[i] = unit(self.v[i] - (self.v[i] @ W_ND[i]) * W_ND[i])
            turn = np.zeros(W_ND.shape[1])
            for b in np.flatnonzero(z_BN[:, i] > 0):
                y = r_BD[b] - (r_BD[b] @ W_ND[i]) * W_ND[i]
                p = self.v[i] @ y
                turn += p * y
                self.rho[i].append(p / z_BN[b, i])
                self.z[i].append(z_BN[b, i])
            if np.linalg.norm(turn) > 0:
                self.v[i] = self.v[i] + TURN * unit(turn)
        self.tokens += len(z_BN)

    def evidence(self):
        rows = []
        for rho, z in zip(self.rho, self.z, strict=True):
            rho, z = np.array(rho), np.array(z)
            use = (z**2).sum() / self.tokens
            if len(rho) < 2 or rho.var() <= 1e-9 * (rho**2).mean():
                rows.append((len(rho), rho.mean() if len(rho) else 0.0, 0.0, 0.0, 0.0, use))
                continue
            centred = rho - rho.mean()
            skew, kurtosis = (centred**3).mean() / rho.var() ** 1.5, (centred**4).mean() / rho.var() ** 2
            rows.append((len(rho), rho.mean(), rho.var(), skew, (skew**2 + 1) / kurtosis, use))
        return np.array(rows).T


def looked(z_steps, r_steps, W, name="fast", spec=None):
    """(Births after these steps, the slow twin after them)."""
    recipe = Recipe.load({"sae": {"n": len(W), "k": 1}, "train": {"kernels": "reference"}})
    trainer = Trainer(recipe, "solo", 0, torch.zeros(W.shape[1]))
    trainer.primary.weights.W_dec_ND.copy_(torch.from_numpy(W))
    births = Births(spec or Spec(window=1), trainer.primary, 100, 0, WHOLE)
    slow = Slow(births.axes_ND.numpy(), *W.shape)
    for z, r in zip(z_steps, r_steps, strict=True):
        pre, residual = torch.from_numpy(z).float(), torch.from_numpy(r).float()
        kept = Kept.where(pre, pre > 0)
        prefixes = Prefixes.even((len(W),))
        births.look(Reconstruction(None, kept, prefixes, (), residual, (residual,), 0.0), kernels(name))
        slow.look(z, r, W)
    return births, slow


def steps(rng, n, case):
    z_steps, r_steps = [], []
    for _ in range(4):
        z = rng.uniform(0.5, 2.0, (32, n)) * (rng.random((32, n)) < 0.3)
        if case == "dead and always on":
            z[:, 0], z[:, 1] = 0, 1.5
        if case == "one token":
            z = z[:1]
        r = rng.standard_normal((len(z), D))
        if case == "no error":
            r[:] = 0
        if case == "duplicates":
            r[:] = r[0]
            z[:] = z[0]
        z_steps.append(z.astype(np.float32).astype(np.float64))
        r_steps.append(r.astype(np.float32).astype(np.float64))
    return z_steps, r_steps


@pytest.mark.parametrize("name", ["reference", "fast"])
@pytest.mark.parametrize("case", ["random", "dead and always on", "one token", "no error", "duplicates"])
def test_statistics_equal_the_slow_loop(name, case):
    rng = np.random.default_rng(1)
    W = unit(rng.standard_normal((5, D))).astype(np.float32).astype(np.float64)
    births, slow = looked(*steps(rng, 5, case), W, name)
    stats = evidence(births.moments_N6.numpy(), births.tokens)
    count, mean, variance, skew, two_points, use = slow.evidence()
    np.testing.assert_allclose(births.axes_ND.numpy(), slow.v, atol=1e-4)
    np.testing.assert_array_equal(stats.count, count)
    np.testing.assert_allclose(stats.use, use, rtol=1e-6)
    np.testing.assert_allclose(stats.mean, mean, atol=1e-4)
    np.testing.assert_allclose(stats.variance, variance, rtol=1e-3, atol=1e-6)
    if case != "duplicates":
        np.testing.assert_allclose(stats.skew, skew, atol=1e-2)
        np.testing.assert_allclose(stats.two_points, two_points, atol=1e-2)


def of_rho(rho, z=1.0):
    """The evidence of one latent with these rho, beside one that nobody needs."""
    rho = np.asarray(rho, np.float64)
    z = np.broadcast_to(z, rho.shape)
    sums = [len(rho), *((rho**power).sum() for power in range(1, 5)), (z**2).sum()]
    poor = [10, 0, 1e-3, 0, 1e-6, 1e-6]
    return evidence(np.array([sums, poor]), 1000)


RNG = np.random.default_rng(0)
WORLDS = {
    "two senses": (RNG.choice([-0.6, 0.6], 400, p=[0.4, 0.6]) + 0.02 * RNG.standard_normal(400), 1.0, True),
    "parent and a rare child": (np.where(RNG.random(400) < 0.1, 0.8, -0.05), 1.0, True),
    "continuum": (RNG.uniform(-1, 1, 4000), 0.556, True),
    "noise": (RNG.standard_normal(4000), 1 / 3, False),
    # looks like two values, but one of them was met once
    "one heavy token": (np.append(0.1 * RNG.standard_normal(400), 50.0), None, False),
    "too few firings": (np.array([-1.0, 1.0] * 2), 1.0, False),
    "constant": (np.full(400, 0.3), 0.0, False),
}


@pytest.mark.parametrize("world", WORLDS)
def test_which_latents_are_split(world):
    rho, two_points, split = WORLDS[world]
    stats = of_rho(rho)
    if two_points is not None:
        assert stats.two_points[0] == pytest.approx(two_points, abs=0.03)
    assert chosen(stats, stats.use, Spec(), 5) == ([(0, 1)] if split else [])


def test_two_values_have_the_moments():
    for share, upper, lower in ((0.5, 1.0, -1.0), (0.1, 3.0, 0.2), (0.93, 0.4, -2.0)):
        mean = share * upper + (1 - share) * lower
        variance = share * (1 - share) * (upper - lower) ** 2
        skew = (1 - 2 * share) / np.sqrt(share * (1 - share))
        assert two_values(mean, variance, skew) == pytest.approx((share, upper, lower))


def brute_chosen(stats, loss, spec, most):
    able = []
    for i in range(len(stats.count)):
        share, _, _ = two_values(stats.mean[i], stats.variance[i], stats.skew[i])
        rarer = stats.count[i] * min(share, 1 - share)
        if stats.two_points[i] >= spec.two_points and rarer >= spec.firings and stats.gain[i] > 0:
            able.append((-stats.gain[i], i))
    parents = [i for _, i in sorted(able)[:most]]
    poor = [j for _, j in sorted((loss[j], j) for j in range(len(loss))) if j not in parents]
    pairs = []
    for i, j in zip(parents, poor, strict=False):
        if not loss[j] < stats.gain[i]:
            break
        pairs.append((i, j))
    return pairs


@pytest.mark.parametrize("seed", range(5))
def test_chosen_equals_brute_force(seed):
    rng = np.random.default_rng(seed)
    rho = rng.standard_normal((40, 60)) * (rng.random((40, 1)) < 0.5) + rng.choice([-1, 1], (40, 60))
    scale = rng.choice([0.1, 1.0, 1.0, 3.0], 40)[:, None]
    sums = np.stack([np.full(40, 60.0), *((rho**power).sum(1) for power in range(1, 5))], 1)
    table = np.concatenate([sums, 60 * scale**2], 1)
    stats = evidence(table, 500)
    # some rows that others rebuild, and ties
    loss = stats.use * rng.choice([0.0, 0.3, 1.0], 40)
    pairs = chosen(stats, loss, Spec(firings=5), 12)
    assert pairs and pairs == brute_chosen(stats, loss, Spec(firings=5), 12)
    children = [child for _, child in pairs]
    assert len({*children, *(parent for parent, _ in pairs)}) == 2 * len(pairs)


def test_twins_by_hand():
    w, v, e = (torch.tensor([row]) for row in ([1.0, 0, 0], [0, 1.0, 0], [0.8, 0.1, 0.2]))
    upper, lower = torch.tensor([1.0]), torch.tensor([-1.0])
    pair = twins(w, v, e, upper, lower)
    half = 0.5**0.5
    torch.testing.assert_close(pair.a_MD, torch.tensor([[half, half, 0]]))
    torch.testing.assert_close(pair.b_MD, torch.tensor([[half, -half, 0]]))
    # c = 0: the dual is a / (1 + RIDGE), and a share of the middle makes up for what is missing
    dual = pair.a_MD / (1 + RIDGE) + (1 - 1 / (1 + RIDGE)) / 0.5 * (pair.a_MD + pair.b_MD) / 2
    torch.testing.assert_close(pair.enc_a_MD, 0.8 * dual + torch.tensor([[0, 0.1, 0.2]]))
    pair = twins(w, v, e, upper, 0.2 * lower)
    own = pair.enc_a_MD - torch.tensor([[0, 0.1, 0.2]])
    assert float((own * pair.a_MD).sum()) == pytest.approx(0.8, rel=1e-5)
    # it turns away from its twin: less of it than the rows have in common
    assert float((own * pair.b_MD).sum()) < 0.8 * float((pair.a_MD * pair.b_MD).sum())


def two_senses(batch, seed, d=16):
    """Tokens with one of two exclusive directions, which a single latent serves, and noise."""
    generator = torch.Generator().manual_seed(seed)
    g = torch.eye(d)[:2]
    which = torch.randint(0, 2, (batch,), generator=generator)
    return 4 * g[which] + 0.05 * torch.randn(batch, d, generator=generator)


def blended_trainer(steps=160, **births):
    values = {"share": 0.5, "window": 40, "every": 0.25, "until": 0.8, "firings": 5} | births
    train = {
        "tokens": 64 * steps,
        "batch": 64,
        "lr": 1e-5,
        "aux_coef": 0.0,
        "births": values,
        "nest": {"weight": 0.0},
        "margin": {"start": 0.0, "end": 0.0},
    }
    recipe = Recipe.load({"sae": {"n": 4, "k": 1}, "train": train})
    trainer = Trainer(recipe, "atomic", 0, torch.zeros(16))
    rows = torch.eye(16)[[0, 5, 6, 7]]
    rows[0] = (torch.eye(16)[0] + torch.eye(16)[1]) / 2**0.5
    for table in (trainer.primary.weights.W_dec_ND, trainer.primary.weights.W_enc_ND):
        table.copy_(rows)
    return trainer


def test_a_latent_that_mixes_two_senses_becomes_one_of_each():
    trainer = blended_trainer(steps=320, window=80)
    for step in range(160):
        trainer.primary_step(two_senses(64, step))
    (record,) = trainer.moves.births.records
    assert record["parent"] == 0 and record["step"] == 160 and record["two_points"] > 0.8
    weights = trainer.primary.weights
    rows = weights.W_dec_ND[[0, record["child"]]]
    # its directions are the two senses, and each fires on its own
    assert sorted(rows.argmax(1).tolist()) == [0, 1] and rows.max(1).values.min() > 0.97
    assert trainer.primary.silent_N[record["child"]] == 0
    for tensor, state in trainer.primary.optimiser.adam.state.items():
        if tensor.ndim == 2:
            assert not state["exp_avg"][[0, record["child"]]].any()
    before = float(trainer.primary_step(two_senses(64, 999))[1]["fvu"])
    for step in range(160, 240):
        trainer.primary_step(two_senses(64, step))
    assert before < 0.2 and trainer.moves.births.records[0]["saved"] > 0.7 * record["promised"]


def test_no_births_before_two_windows_or_after_the_last_time():
    trainer = blended_trainer(window=30)
    due = [done for done in range(1, 161) if trainer.moves.births.ends_window(done)]
    assert due == [80, 120]
    looking = [done for done in range(160) if trainer.moves.births.is_looking(done)]
    assert looking == [*range(50, 80, 2), *range(90, 120, 2)]
    # a run that is too short for a window has none
    births = {"share": 0.5}
    recipe = Recipe.load({"sae": {"n": 4, "k": 1}, "train": {"tokens": 64 * 40, "batch": 64, "births": births}})
    short = Trainer(recipe, "atomic", 0, torch.zeros(16))
    assert not any(short.moves.births.ends_window(done) for done in range(1, 41))
    assert not any(short.moves.births.is_looking(done) for done in range(40))


def test_resumed_across_births_to_the_bit(tmp_path):
    whole = blended_trainer()
    for step in range(130):
        whole.primary_step(two_senses(64, step))
    assert whole.moves.births.records
    for stop in (70, 80, 110):
        first = blended_trainer()
        for step in range(stop):
            first.primary_step(two_senses(64, step))
        checkpoint.save(first, [], 0, tmp_path / str(stop))
        second = blended_trainer()
        checkpoint.load(second, tmp_path / str(stop))
        for step in range(stop, 130):
            second.primary_step(two_senses(64, step))
        assert second.moves.births.facts() == whole.moves.births.facts()
        for key, tensor in whole.primary.weights.tensors().items():
            assert torch.equal(tensor, getattr(second.primary.weights, key)), (stop, key)
