import numpy as np
import pytest
import torch
from fakes import random_sae

from metasae.measures.firing.selection import Screen, dense_candidates


def inputs(n_tokens=300, d=8, seed=1):
    return torch.randn(n_tokens, d, generator=torch.Generator().manual_seed(seed)) * 3 + 0.5


def as_set(kept):
    return set(zip(kept.rows.tolist(), kept.latents.tolist(), strict=True))


@pytest.mark.parametrize("d, n", [(8, 24), (384, 700)])
@pytest.mark.parametrize("normalize", ["none", "token"])
@pytest.mark.parametrize("limit", [3.0, 6.0, "per latent", 1e9])
def test_candidates_hold_every_entry_at_the_limit(d, n, normalize, limit):
    sae, x = random_sae(d, n, normalize=normalize), inputs(d=d)
    limit = torch.linspace(-1, 12, n) if limit == "per latent" else torch.full([n], limit)
    x, _, _ = sae.normalise(x)
    pre = sae.pre_activations(x)
    screen = Screen(sae, limit, screened=True)
    entries = screen.candidates(x)
    np.testing.assert_allclose(entries.values, pre[entries.rows.long(), entries.latents.long()], rtol=1e-4, atol=1e-4)
    expected = dense_candidates(sae, x, limit.clamp(min=0))
    # an entry that lies on the limit but for fp32 rounding may fall on either side
    sure = set(map(tuple, (pre > limit.clamp(min=0) + 1e-4).nonzero().tolist()))
    assert sure <= as_set(entries) and sure <= as_set(expected)
    fires, dense = screen.above(x), Screen(sae, limit, screened=False).above(x)
    assert sure <= as_set(fires) and len(as_set(fires) ^ as_set(dense)) <= 1e-4 * n * len(x)
    for part in (entries, fires, dense):
        assert np.array_equal(np.diff(part.offsets), np.bincount(part.rows, minlength=len(x)))


def test_limits_that_are_hit_exactly():
    # every factor is a bf16 number, so each limit is exactly some pre-activation
    sae = random_sae(8, 24)
    for tensor in (sae.W_enc, sae.b_enc, sae.b_dec):
        tensor.copy_((tensor * 8).round() / 8)
    x = (inputs() * 4).round() / 4
    pre = sae.pre_activations(x)
    for row in range(0, 300, 17):
        limit = pre[row].max().item()
        if limit > 0:
            screen = Screen(sae, limit, screened=True)
            assert set(map(tuple, (pre >= limit).nonzero().tolist())) <= as_set(screen.candidates(x))
            assert as_set(screen.above(x)) == set(map(tuple, (pre > limit).nonzero().tolist()))


def test_the_bound_holds_at_its_worst():
    # factors whose rounding errors to bf16 are as large as can be, all in one direction
    worst = 1 + 2.0**-8 - 2.0**-20
    sae = random_sae(64, 4)
    sae.b_enc.zero_(), sae.b_dec.zero_()
    sae.W_enc.fill_(worst)
    for sign in (1, -1):
        x = torch.full([3, 64], worst + (0 if sign > 0 else 2.0**-19))
        pre = sae.pre_activations(x)
        assert len(as_set(Screen(sae, float(pre[0, 0]) * (1 - 1e-6), screened=True).above(x))) == 12


def test_candidates_are_few_and_too_many_take_the_dense_way():
    sae, x = random_sae(64, 512, threshold=4.0), inputs(d=64)
    few = Screen(sae, 12.0, screened=True)
    assert len(few.above(x).values) <= len(few.candidates(x).values) <= 1.6 * len(few.above(x).values) + 20
    all_positive = Screen(sae, 0.0, screened=True).candidates(x)
    assert len(all_positive.values) == int((sae.pre_activations(x) >= 0).sum())


@pytest.mark.parametrize("screened", [True, False])
@pytest.mark.parametrize("normalize", ["none", "token"])
def test_reconstruct_is_the_sae(screened, normalize):
    sae, x = random_sae(normalize=normalize, threshold=0.4), inputs()
    torch.testing.assert_close(Screen(sae, sae.threshold, screened).reconstruct(x), sae(x), rtol=1e-4, atol=1e-4)
