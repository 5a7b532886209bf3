import numpy as np
import pytest
import torch
from fakes import FakeSplit, random_sae, random_split

from metasae.errors import UserError
from metasae.measures.firing import rules
from metasae.measures.firing.rules import LargestOfEach, eer, per_latent
from metasae.measures.firing.selection import count_firings
from metasae.sae.kernels import reference
from metasae.sae.sae import SAE, SAEConfig

INF = float("inf")


def identity_sae(n, k=1):
    """An SAE whose pre-activations are its inputs."""
    sae = SAE(SAEConfig(d_in=n, d_sae=n, k=k))
    sae.W_enc.copy_(torch.eye(n))
    return sae


def dense(sae, split, k, batch):
    """All pre-activations float32 [T, n], and which of them BatchTopK selects."""
    pre, selected = [], []
    for block in split.blocks(batch):
        pre.append(sae.pre_activations(sae.normalise(block)[0]))
        selected.append(reference.select(pre[-1], round(k * len(block)))[0].dense() > 0)
    return torch.cat(pre).numpy(), torch.cat(selected).numpy()


def nearest_count(values, count):
    """By trying every threshold: (the one whose count of numbers above is nearest to `count`, the sparser of two, that
    count)."""
    tried = [np.float32(INF), *sorted(values, reverse=True), *(np.nextafter(value, np.float32(0)) for value in values)]
    return min((abs(int((values > t).sum()) - count), int((values > t).sum())) for t in tried)[1]


@pytest.mark.parametrize("slack", [0, 65_536])
@pytest.mark.parametrize("levels", [3, 1000])
def test_largest_of_each_is_a_sort_of_each(slack, levels, monkeypatch):
    monkeypatch.setattr(rules, "_SLACK", slack)
    rng = np.random.default_rng(levels)
    for _ in range(20):
        latents, values = (
            rng.integers(0, 6, 300).astype(np.int32),
            (rng.integers(1, levels, 300) / 7).astype(np.float32),
        )
        counts = np.array([rng.integers(0, 1 + np.count_nonzero(latents == i)) for i in range(6)])
        low = np.array([min(values[latents == i], default=INF) for i in range(6)], np.float32)
        thresholds = LargestOfEach(counts, np.where(counts > 0, 0.99 * low, INF))
        for part in np.array_split(np.arange(300), 9):
            thresholds.add(latents[part], values[part])
        for i, threshold in enumerate(thresholds.thresholds()):
            assert not np.isnan(threshold)
            assert int((values[latents == i] > threshold).sum()) == nearest_count(values[latents == i], counts[i])
            assert (threshold == INF) == (counts[i] == 0)


def test_memory_follows_the_counts_and_not_the_stream(monkeypatch):
    monkeypatch.setattr(rules, "_SLACK", 10)
    thresholds = LargestOfEach(np.array([2, 3]), np.array([0.5, 0.5], np.float32))
    for _ in range(1000):
        thresholds.add(np.array([0, 1, 1], np.int32), np.array([1.0, 2.0, 1.0], np.float32))
        assert sum(map(len, thresholds._values)) <= 2 * 7 + 10 + 3
    # 1000 tied numbers against 2 wanted: none is nearer than all
    assert thresholds.thresholds().tolist() == [1.0, 2.0]


def test_neighbouring_floats_are_told_apart():
    high = np.float32(1.7)
    low = np.nextafter(high, np.float32(0))
    thresholds = LargestOfEach(np.array([1, 2]), np.array([1.0, 1.0], np.float32))
    thresholds.add(
        np.array([0, 0, 1, 1, 1], np.int32),
        np.array([low, high, low, high, np.nextafter(low, np.float32(0))], np.float32),
    )
    first, second = thresholds.thresholds()
    assert low <= first < high and np.nextafter(low, np.float32(0)) <= second < low


@pytest.mark.parametrize("normalize", ["none", "token"])
@pytest.mark.parametrize("k, batch", [(1, 5), (4, 40), (7, 1), (4, 1000)])
def test_per_latent_gives_each_latent_its_batch_topk_count(normalize, k, batch):
    sae, split = random_sae(normalize=normalize), random_split(200)
    pre, selected = dense(sae, split, k, batch)
    thresholds = per_latent(sae, split, k, batch)
    assert thresholds.selected.tolist() == selected.sum(0).tolist() and thresholds.fallbacks == 0
    assert (pre > thresholds.values).sum(0).tolist() == selected.sum(0).tolist()
    for i, count in enumerate(selected.sum(0)):
        ordered = np.append(np.sort(pre[:, i])[::-1], -INF)
        if count:
            last, following = ordered[count - 1], ordered[count]
            assert thresholds.values[i] == pytest.approx(max(last * (1 - 2**-12), (last + following) / 2), rel=1e-6)
        else:
            assert thresholds.values[i] == INF


def test_per_latent_among_many_latents_whatever_is_kept(monkeypatch):
    sae, split = random_sae(32, 600, k=3), random_split(900, d=32)
    plain = per_latent(sae, split, 3, 100)
    monkeypatch.setattr(rules, "_SLACK", 0)
    tight = per_latent(sae, split, 3, 100)
    np.testing.assert_array_equal(plain.values, tight.values)
    assert count_firings(sae, torch.from_numpy(plain.values), split, 100).tolist() == plain.selected.tolist()


def test_per_latent_by_hand():
    # k = 1, so a batch of two keeps two: 3 and 2, then .9 and .8. Latent 0 is selected three times and latent 1 once,
    # with .8; but one firing of latent 1 is its 1.5. Latent 2 is never selected
    x = [[3.0, 0.5, 0.1], [2.0, 1.5, 0.7], [0.9, 0.8, 0.6], [-1.0, 0.3, 0.2]]
    thresholds = per_latent(identity_sae(3), FakeSplit(x), 1, 2)
    assert thresholds.selected.tolist() == [3, 1, 0]
    assert thresholds.values.tolist() == pytest.approx([0.9 * (1 - 2**-12), 1.5 * (1 - 2**-12), INF], rel=1e-6)


def test_per_latent_takes_the_nearer_side_of_ties():
    # three tied ones of which the first is selected: none (1 off) is nearer than all (2 off)
    thresholds = per_latent(identity_sae(1), FakeSplit([[1.0], [1.0], [1.0]]), 1 / 3, 3)
    assert thresholds.selected.tolist() == [1] and thresholds.values.tolist() == [1.0]
    # two of three: all three are nearer
    thresholds = per_latent(identity_sae(1), FakeSplit([[1.0], [1.0], [1.0]]), 2 / 3, 3)
    assert thresholds.selected.tolist() == [2] and thresholds.values[0] < 1


def test_always_on_dead_and_too_few():
    x = torch.rand(40, 3) + 1
    x[:, 1] = -1
    thresholds = per_latent(identity_sae(3), FakeSplit(x), 3, 8)
    assert thresholds.selected.tolist() == [40, 0, 40]
    assert count_firings(identity_sae(3), torch.from_numpy(thresholds.values), FakeSplit(x)).tolist() == [40, 0, 40]
    nothing = per_latent(identity_sae(3), FakeSplit(-x.abs()), 3, 8)
    assert nothing.selected.tolist() == [0, 0, 0] and np.isinf(nothing.values).all()


@pytest.mark.parametrize("rule", [per_latent, eer])
def test_one_token(rule):
    thresholds = rule(identity_sae(3), FakeSplit([[0.5, 2.0, 1.0]]), 2)
    assert thresholds.selected.tolist() == [0, 1, 1]


def plain_eer(pre, selected):
    """The rule as METHOD gives it, by loops, in float64."""
    centres = (np.arange(200) + 0.5) * 0.05
    out = []
    for i in range(pre.shape[1]):
        chosen, others = pre[selected[:, i], i], pre[~selected[:, i] & (pre[:, i] > 0), i]
        if len(chosen) == 0:
            out.append(10.0)
        elif len(chosen) < 100:
            out.append(max(chosen.min(), others.max() if len(others) else 0))
        else:
            gaps = []
            for b in range(200):
                edge = (b + 1) / 20
                missed = sum(float(value) < edge for value in chosen) / len(chosen)
                false = sum(float(value) >= edge for value in others) / max(len(others), 1)
                gaps.append(abs(missed - false))
            out.append(centres[int(np.argmin(gaps))])
    return np.array(out, np.float32)


@pytest.mark.parametrize("scale", [0.5, 1.0, 4.0])
@pytest.mark.parametrize("batch", [64, 900])
def test_eer_is_its_plain_twin(scale, batch):
    sae, split = random_sae(n=12), random_split(900)
    split.x *= scale  # at 4 many pre-activations lie beyond the histogram
    pre, selected = dense(sae, split, 2, batch)
    thresholds = eer(sae, split, 2, batch)
    assert thresholds.selected.tolist() == selected.sum(0).tolist()
    counts = selected.sum(0)
    assert thresholds.fallbacks == np.count_nonzero((counts > 0) & (counts < 100)) > 0 and (counts >= 100).any()
    np.testing.assert_allclose(thresholds.values, plain_eer(pre, selected), rtol=0, atol=1e-6)


def test_eer_by_hand():
    # batches of two tokens and k = 1/2: the larger of two is selected. 100 times (2.12, 1.02), and 25 times (.82, .42)
    # so that a quarter of 100 lies low: missed at .85 and above 20%, false from 1.05 down to .45 80%, from .45 down
    # 100%
    x = torch.tensor([[2.12], [1.02]] * 100 + [[0.82], [0.42]] * 25)
    thresholds = eer(identity_sae(1), FakeSplit(x), 0.5, 2)
    # missed: 0 up to bin 15, .2 from bin 16 ([.8, .85)) to 41, then 1. False: 1 up to bin 7, .8 to bin 19, then 0.
    # so |missed - false| is 1, .8, .6 (bins 16 to 19), .2 (bins 20 to 41), 1: the first of the least is bin 20
    assert thresholds.selected.tolist() == [125] and thresholds.fallbacks == 0
    assert thresholds.values.tolist() == pytest.approx([20.5 * 0.05])


def test_eer_fallbacks_by_hand():
    # k = 2 and batches of 20, so 40 are kept: all of latents 0 and 1, none of latent 3
    x = torch.full([40, 4], -1.0)
    x[:, 0] = torch.linspace(3, 4, 40)
    x[:, 1] = torch.tensor([5.0, 2.5]).repeat_interleave(20)
    x[:, 3] = torch.linspace(1, 2, 40)
    thresholds = eer(identity_sae(4), FakeSplit(x), 2, 20)
    assert thresholds.selected.tolist() == [40, 40, 0, 0]
    assert thresholds.values.tolist() == [3.0, 2.5, 10.0, 10.0] and thresholds.fallbacks == 2
    overlap = FakeSplit([[1.0], [4.0], [6.0], [8.0]])  # batches of two keep 4 and 8; 6 is unselected and above 4
    assert eer(identity_sae(1), overlap, 0.5, 2).values.tolist() == [6.0]


def test_eer_without_unselected_ones_keeps_all():
    thresholds = eer(identity_sae(1), FakeSplit(torch.linspace(1, 2, 150)[:, None]), 1, 10)
    assert thresholds.selected.tolist() == [150] and thresholds.values.tolist() == pytest.approx([0.025])


def test_eer_overfires_where_selected_and_unselected_overlap():
    # in small batches the selection ends now higher, now lower
    sae, split = random_sae(16, 64, k=4, seed=2), random_split(4000, d=16)
    fired = {
        rule: count_firings(sae, torch.from_numpy(rule(sae, split, 4, 8).values), split).sum()
        for rule in (eer, per_latent)
    }
    assert fired[per_latent] == 4 * 4000
    assert fired[eer] / (4 * 4000) > 1.1


@pytest.mark.parametrize("rule", [per_latent, eer])
def test_numbers_that_are_not_finite_are_refused(rule):
    split = random_split(4)
    split.x[2, 1] = float("nan")
    with pytest.raises(UserError, match="not finite"):
        rule(random_sae(), split, 2)
