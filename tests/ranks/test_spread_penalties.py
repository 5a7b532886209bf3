"""Further penalties and prefixes over ranks: what one process gives, and what plain loops in float64 give, on inputs
that are hard on them.
"""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from threads import on_threads

from metasae.ranks.ranks import span_of
from metasae.recipe.registry import PENALTIES, named
from metasae.sae.architectures import Options, architecture
from metasae.sae.kernels import reference
from metasae.sae.kernels.kept import Kept
from metasae.sae.spread import WHOLE
from metasae.train.penalties import cofiring, ortsae
from metasae.train.penalties.scene import Scene, charge
from metasae.train.sharded.step import LatentsSpread

SEED, STEP = 1, 3


def drawn(n=23, d=6, tokens=40, seed=0):
    """(rows, pre-activations of which some fire, rates)."""
    generator = torch.Generator().manual_seed(seed)
    W = torch.randn(n, d, generator=generator)
    return (
        W / W.norm(dim=1, keepdim=True),
        torch.randn(tokens, n, generator=generator) - 1,
        torch.rand(n, generator=generator) ** 3,
    )


def on_a_grid():
    """Rows of +-1/2: sixteen different ones of 23, whose products are exact, so that ties are."""
    _, pre, f = drawn()
    return torch.randint(0, 2, (23, 4), generator=torch.Generator().manual_seed(2)) - 0.5, pre, f


def without(latents, rate=0.0):
    """Latents that never fire."""
    W, pre, f = drawn()
    pre[:, latents], f[latents] = -1.0, rate
    return W, pre, f


CASES = {
    "random": drawn(),
    "ties": on_a_grid(),
    "one token": drawn(tokens=1),
    "more tokens than are looked at": drawn(tokens=60),
    "a latent a rank": drawn(n=3),
    "a rank that never fires": without(list(range(8, 16))),
    "dead ones here and there": without([0, 7, 8, 22]),
    "one that fires alone": without(list(range(1, 23)), rate=0.1),
    "nothing fires": without(list(range(23))),
    "always on": (drawn()[0], torch.ones(40, 23), torch.ones(23)),
    "equal rows": (drawn()[0][:1].expand(23, 6).contiguous(), drawn()[1], drawn()[2]),
}


def plain_c2r(W, pre):
    """(value, gradient, gradient by the activations [B, n]) in float64, by loops; W, pre: float64."""
    z = np.maximum(pre, 0)
    n, G, gradient, norm = len(W), W @ W.T, np.zeros(W.shape), np.linalg.norm(z, axis=0)
    value, d_norm = 0.0, np.zeros(n)
    for i in range(n):
        j = max((j for j in range(n) if j != i), key=lambda j, i=i: G[i, j])
        c, both = max(0.0, G[i, j]), norm[i] + norm[j]
        value += both * c * c / n
        gradient[i] += 2 / n * both * c * W[j]
        gradient[j] += 2 / n * both * c * W[i]
        d_norm[[i, j]] += c * c / n
    return value, gradient, d_norm * np.divide(z, norm, where=norm > 0, out=np.zeros_like(z))


def plain(name, W, pre, f):
    """(value, gradient, gradient by the activations or None) in float64, by loops."""
    W, f, on = W.double().numpy(), f.double().numpy(), (pre > 0).numpy()
    if name == "c2r":
        return plain_c2r(W, pre.double().numpy())
    n, G, gradient, value = len(W), W @ W.T, np.zeros(W.shape), 0.0
    if name == "ortsae":
        order = torch.randperm(n, generator=torch.Generator().manual_seed(SEED * 1_000_003 + STEP)).tolist()
        for start in range(0, n, ortsae.CHUNK):
            chunk = order[start : start + ortsae.CHUNK]
            for i in chunk:
                # the first of the largest
                j = max((j for j in chunk if j != i), key=lambda j, i=i: G[i, j], default=i)
                c = max(0.0, G[i, j]) if j != i else 0.0
                value += c * c / n
                gradient[i] += 2 / n * c * W[j]
                gradient[j] += 2 / n * c * W[i]
        return value, gradient, None
    weight = np.outer(f, f) / max(f.sum() ** 2, 1e-12)
    if name == "cofiring":
        weight = np.zeros((n, n))
        for t in range(min(cofiring.TOKENS, len(on))):
            for i in np.flatnonzero(on[t]):
                weight[i, on[t]] += 1
        np.fill_diagonal(weight, 0)
        weight /= max(1.0, weight.sum())
    for i in range(n):
        for j in range(n):
            if i != j:
                value += weight[i, j] * G[i, j] ** 2
                gradient[i] += 4 * weight[i, j] * G[i, j] * W[j]
    return value, gradient, None


def scene_of(W, pre, f, ranks):
    """What a rank sees."""
    own = span_of(len(W), ranks.size, ranks.rank)
    mine = slice(own.start, own.stop)
    return Scene(
        W[mine].clone(),
        Kept.where(pre[:, mine], pre[:, mine] > 0),
        f[mine].clone(),
        STEP,
        SEED,
        LatentsSpread(ranks, len(W)),
    )


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Chunks of which some ranks have no latent, and fewer tokens than the batch has."""
    monkeypatch.setattr(ortsae, "CHUNK", 5)
    monkeypatch.setattr(cofiring, "TOKENS", 50)


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("case", list(CASES))
@pytest.mark.parametrize("name", list(PENALTIES))
def test_a_penalty_over_ranks_is_that_of_one_process(name, case, size):
    W, pre, f = CASES[case]
    kept = Kept.where(pre, pre > 0)
    alone, whole_gradient, whole_entries = charge(named(PENALTIES, name), Scene(W, kept, f, STEP, SEED))
    wanted, gradient, entries = plain(name, W, pre, f)
    np.testing.assert_allclose(alone, wanted, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(whole_gradient, gradient, rtol=1e-5, atol=1e-6)
    values, gradients, parts = zip(
        *on_threads(size, lambda ranks: charge(named(PENALTIES, name), scene_of(W, pre, f, ranks))), strict=True
    )
    assert all(torch.equal(value, values[0]) for value in values)
    assert [len(part) for part in gradients] == [len(span_of(len(W), size, rank)) for rank in range(size)]
    np.testing.assert_allclose(values[0], alone, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(torch.cat(gradients), whole_gradient, rtol=1e-5, atol=1e-7)
    if entries is None:
        assert whole_entries is None and set(parts) == {None}
        return
    np.testing.assert_allclose(kept.with_values(whole_entries).dense(), entries, rtol=1e-5, atol=1e-7)
    assert_entries(parts, kept.with_values(whole_entries).dense(), W, pre, f)


def assert_entries(parts, wanted, W, pre, f):
    """The ranks' gradients by their entries, side by side, are `wanted` [B, n]."""
    scenes = on_threads(len(parts), lambda ranks: scene_of(W, pre, f, ranks))
    dense = [scene.kept.with_values(part).dense() for scene, part in zip(scenes, parts, strict=True)]
    np.testing.assert_allclose(torch.cat(dense, dim=1), wanted, rtol=1e-5, atol=1e-7)


def test_entries_that_are_carried_with_zero_do_not_fire():
    """JumpReLU keeps entries just below its threshold, as zeros."""
    W, pre, f = CASES["random"]
    kept = Kept.where(pre, pre > 0)
    carried = Kept.where(pre, pre > -0.5)
    carried = carried.with_values(carried.values.clamp(min=0))
    for name in ("cofiring", "c2r"):
        one, other = (charge(named(PENALTIES, name), Scene(W, firings, f, STEP, SEED)) for firings in (kept, carried))
        assert torch.equal(one.value, other.value) and torch.equal(one.rows_ND, other.rows_ND)
        if one.entries_K is not None:
            assert torch.equal(kept.with_values(one.entries_K).dense(), carried.with_values(other.entries_K).dense())


@pytest.mark.parametrize("case", ["random", "a rank that never fires", "nothing fires", "a latent a rank"])
def test_a_penalty_that_knows_nothing_of_ranks_sees_all_latents(case):
    W, pre, f = CASES[case]
    scenes = []

    def penalty(scene):
        scenes.append(scene)
        return scene.rate_N.sum(), torch.arange(len(scene.W_dec_ND))[:, None] * scene.W_dec_ND, 2 * scene.kept.values

    parts = on_threads(3, lambda ranks: charge(penalty, scene_of(W, pre, f, ranks)))
    assert torch.equal(torch.cat([gradient for _, gradient, _ in parts]), torch.arange(len(W))[:, None] * W)
    assert all(torch.equal(value, f.sum()) for value, _, _ in parts)
    kept = Kept.where(pre, pre > 0)
    assert_entries([entries for _, _, entries in parts], 2 * kept.dense(), W, pre, f)
    for scene in scenes:
        assert (
            torch.equal(scene.W_dec_ND, W) and torch.equal(scene.rate_N, f) and (scene.step, scene.seed) == (STEP, SEED)
        )
        assert scene.own == range(len(W)) and scene.kept.n_latents == len(W)
        for name in ("rows", "latents", "values", "offsets"):
            assert torch.equal(getattr(scene.kept, name), getattr(kept, name)), name


def test_the_examples_of_the_page_on_extending_are_one_penalty():
    page = (Path(__file__).parents[2] / "docs" / "extending.md").read_text()
    W, pre, f = CASES["random"]
    mean = W.mean(0)
    for name in ("centred.py", "centred_over_ranks.py"):
        block = next(
            block for block in re.findall(r"```python\n(.*?)```", page, re.S) if f"/{name}" in block.splitlines()[0]
        )
        space = {}
        exec(block, space)
        values, gradients, _ = zip(
            *on_threads(3, lambda ranks, space=space: charge(space["centred"], scene_of(W, pre, f, ranks))), strict=True
        )
        assert all(torch.equal(value, values[0]) for value in values)
        torch.testing.assert_close(values[0], mean.square().sum())
        torch.testing.assert_close(torch.cat(gradients), (2 / 23 * mean).expand_as(W))


def test_rows_are_sent_once_for_all_penalties():
    W, pre, f = CASES["random"]

    def sent(ranks):
        scene, gathered = scene_of(W, pre, f, ranks), []
        gather_rows = ranks.gather_rows
        ranks.gather_rows = lambda part, *rest: gathered.append(tuple(part.shape[1:])) or gather_rows(part, *rest)
        for name in PENALTIES:
            charge(named(PENALTIES, name), scene)
        return gathered

    assert all(shapes.count((6,)) == 1 for shapes in on_threads(2, sent))


def test_prefixes_of_a_stretch_by_hand():
    """Prefixes of 2, 5 and 10 latents, in stretches of 4, 4 and 2."""
    whole = architecture("matryoshka", Options(2, prefixes=(0.2, 0.5)))
    ends = on_threads(
        3,
        lambda ranks: architecture("matryoshka", Options(2, prefixes=(0.2, 0.5)), LatentsSpread(ranks, 10)).ends(
            len(span_of(10, 3, ranks.rank))
        ),
    )
    assert whole.ends(10) == (2, 5, 10) and ends == [(2, 4, 4), (0, 1, 4), (0, 0, 2)]


def test_a_prefix_without_latents_here_is_rebuilt_from_the_others():
    """Stretches of one latent: every group but one is empty on a rank."""
    from metasae.sae.gradients import Arithmetic, forward, sae_gradients
    from metasae.sae.kernels import fast
    from metasae.sae.weights import Weights
    from metasae.train.sharded.step import LatentKernels

    W, pre, _ = drawn(n=3, tokens=8)
    x, whole = pre @ W, architecture("matryoshka", Options(1, prefixes=(0.3, 0.6)))

    def step(module, spread, kind, rows):
        weights, how = (
            Weights(rows.clone(), rows.clone(), torch.full((6,), 0.1)),
            Arithmetic(module, torch.float32, spread),
        )
        reconstruction = forward(x, weights, kind, 1, 0.0, how)
        return reconstruction.residuals, sae_gradients(reconstruction, weights, kind, None, how)

    def of_rank(ranks):
        spread = LatentsSpread(ranks, 3)
        return step(
            LatentKernels(fast, ranks, 3),
            spread,
            architecture("matryoshka", Options(1, prefixes=(0.3, 0.6)), spread),
            W[ranks.rank : ranks.rank + 1],
        )

    residuals, wanted = step(reference, WHOLE, whole, W)
    for rank, (parts, gradients) in enumerate(on_threads(3, of_rank)):
        assert len(parts) == 3
        for part, residual in zip(parts, residuals, strict=True):
            torch.testing.assert_close(part, residual)
        torch.testing.assert_close(gradients.l2, wanted.l2)
        torch.testing.assert_close(gradients.weights.b_dec_D, wanted.weights.b_dec_D)
        for name in ("W_dec_ND", "W_enc_ND"):
            torch.testing.assert_close(getattr(gradients.weights, name), getattr(wanted.weights, name)[rank : rank + 1])
