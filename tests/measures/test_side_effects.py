import itertools

import numpy as np
import pytest
import torch
from fakes import FakeSplit, random_sae
from scipy.sparse import csr_array
from torch import nn

from metasae.data.text.windows import Frame
from metasae.measures.effect import side_effects as module
from metasae.measures.effect.matched_effects import compare_side_effects
from metasae.measures.effect.output import windows_of
from metasae.measures.effect.side_effects import SideEffects, side_effects
from metasae.measures.firing.firings import Firings, fire
from metasae.steering import Ablate
from metasae.steering.steering import steer

D, VOCABULARY, CONTEXT = 8, 11, 6
BOS, SEP = 9, 10


class FakeHost:
    """An embedding, the hook point, a mixing of neighbours, a bend, and a read-out."""

    def __init__(self, causal, readout=None, embedding=None):
        generator = torch.Generator().manual_seed(0)
        self.causal, self.pad_id = causal, 0
        self.frame = Frame((BOS,), () if causal else (SEP,))
        self.embedding = torch.randn(VOCABULARY, D, generator=generator) if embedding is None else embedding
        width = self.embedding.shape[1]
        weights = torch.randn(width, VOCABULARY, generator=generator)
        self.readout = readout or (lambda x: torch.tanh(x) @ weights)
        self.windows = 0

    def output(self, ids, mask, replace=None):
        self.windows += len(ids)
        x = self.embedding[ids]
        x = x if replace is None else replace(x)
        nothing = torch.zeros(len(x), 1, x.shape[-1])
        mixed = x + 0.5 * torch.cat([nothing, x[:, :-1]], 1)
        return self.readout(
            mixed if self.causal else mixed + 0.5 * torch.cat([x[:, 1:] * mask[:, 1:, None], nothing], 1)
        )


def split_for(host, lengths, seed=0):
    rng = np.random.default_rng(seed)
    tokens = [rng.integers(1, 9, length).astype(np.int32) for length in lengths]
    split = FakeSplit(host.embedding[torch.from_numpy(np.concatenate(tokens)).long()], tokens=np.concatenate(tokens))
    split.documents = np.concatenate([np.full(len(t), number, np.int32) for number, t in enumerate(tokens)])
    split.positions = np.concatenate([np.arange(len(t), dtype=np.int32) for t in tokens])
    return split


def firings_of(dense, split):
    """Firings with the activations of a dense matrix [T, n]."""
    sparse = csr_array(np.asarray(dense, dtype=np.float32))
    place = split.documents, split.tokens, split.positions
    return Firings(sparse.indptr.astype(np.int64), sparse.indices.astype(np.int32), sparse.data, dense.shape[1], *place)


def random_firings(split, n=6, rate=0.15, seed=3):
    rng = np.random.default_rng(seed)
    return firings_of(rng.uniform(0.2, 2, (split.n_tokens, n)) * (rng.random((split.n_tokens, n)) < rate), split)


def distance(host, clean, changed):
    if host.causal:
        p, q = clean.double().softmax(-1), changed.double().softmax(-1)
        return (p * (p / q).log()).sum(-1).numpy()
    return (1 - nn.functional.cosine_similarity(clean.double(), changed.double(), dim=-1)).numpy()


def test_trials_pair_a_window_with_a_silent_one_of_like_length():
    host = FakeHost(True)
    split = split_for(host, [3, 9, 4, 1, 8, 5, 5, 2, 7, 12])
    firings, sae = random_firings(split), random_sae(D, 6)
    windows = windows_of(split, split.n_tokens, 5)
    starts = np.cumsum([0, *map(len, windows)])
    dense = firings.csr.toarray()
    fired = np.array([(dense[a:b] > 0).any(axis=0) for a, b in itertools.pairwise(starts)])
    trials = module._draw(sae, firings, windows, np.arange(6), 100, 0)
    assert {trial.latent for trial in trials} == set(range(6)) and len(trials) > 20
    for trial in trials:
        home, silent = windows[trial.home], windows[trial.silent]
        assert fired[trial.home, trial.latent] and not fired[trial.silent, trial.latent]
        gaps = [abs(len(windows[w]) - len(home)) for w in np.flatnonzero(~fired[:, trial.latent])]
        assert abs(len(silent) - len(home)) == min(gaps) and trial.length == min(len(home), len(silent))
        own = dense[starts[trial.home] : starts[trial.home] + trial.length, trial.latent]
        assert trial.places.tolist() == np.flatnonzero(own).tolist() and np.array_equal(trial.values, own[own > 0])
        assert torch.equal(trial.directions[0], sae.W_dec[trial.latent])
        assert trial.directions.norm(dim=1).tolist() == pytest.approx(
            [float(sae.W_dec[trial.latent].norm())] * 2, rel=1e-5
        )
    used = {(trial.latent, trial.home) for trial in trials}
    assert len(used) == len(trials) <= fired.sum()

    def drawn(latents, pairs, seed):
        measured = module._draw(sae, firings, windows, np.array(latents), pairs, seed)
        return [(latents[t.latent], t.home, t.silent, t.directions.tolist()) for t in measured]

    few = drawn([4, 1], 2, 0)
    assert len(few) == 4 and few[:2] == drawn([4], 2, 0) and few[2:] == drawn([1], 2, 0) and few != drawn([4, 1], 2, 1)


def test_of_two_lengths_as_near_the_greater_one():
    lengths, rng = np.array([4, 3, 5, 5, 9]), np.random.default_rng(0)
    silent = np.array([1, 2, 3, 4])
    assert {module._nearest_in_length(silent, lengths, 4, rng) for _ in range(40)} == {2, 3}
    assert {module._nearest_in_length(silent, lengths, 20, rng) for _ in range(5)} == {4}


@pytest.mark.parametrize("normalize", ["none", "token"])
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("batch_tokens", [1, 4096])
def test_against_the_definition(causal, normalize, batch_tokens):
    host = FakeHost(causal)
    split = split_for(host, [3, 9, 4, 1, 8, 5, 5, 2, 7, 12])
    firings, sae = random_firings(split), random_sae(D, 6, normalize=normalize)
    latents = [4, 0, 5, 1]
    measured = side_effects(host, sae, firings, latents, CONTEXT, pairs=3, seed=2, batch_tokens=batch_tokens)
    windows = windows_of(split, split.n_tokens, host.frame.room(CONTEXT))
    starts = np.cumsum([0, *map(len, windows)])
    trials = module._draw(sae, firings, windows, np.array(latents), 3, 2)
    sums, counts, moved = np.zeros((2, 2, 4)), np.zeros(4, int), np.zeros((4, split.n_tokens))
    for trial in trials:
        counts[trial.latent] += len(trial.places)
        for side, window in enumerate((trial.home, trial.silent)):
            ids = torch.tensor([[BOS, *windows[window].tokens, *([] if causal else [SEP])]])
            clean = host.output(ids, torch.ones_like(ids))[0]
            for which in range(2):

                def change(x, trial=trial, side=side, which=which):
                    x = x.clone()
                    for place, value in zip(trial.places, trial.values, strict=True):
                        token = x[0, 1 + place]
                        step = (2 * side - 1) * float(value) * trial.directions[which]
                        x[0, 1 + place] = token + step * (token.std() if normalize == "token" else 1)
                    return x

                changed = host.output(ids, torch.ones_like(ids), change)[0]
                by_token = distance(host, clean, changed)[1 : 1 + trial.length]
                sums[which, side, trial.latent] += by_token.sum()
                if side == which == 0:
                    for place in trial.places:
                        moved[trial.latent, starts[window] + place] = by_token[place]
    assert measured.firings.tolist() == counts.tolist()
    own, silent, own_random, silent_random = sums[0, 0], sums[0, 1], sums[1, 0], sums[1, 1]
    for name, values in (
        ("own", own),
        ("silent", silent),
        ("own_random", own_random),
        ("silent_random", silent_random),
    ):
        assert getattr(measured, name) == pytest.approx(values / counts, rel=1e-4)
    assert measured.moved.toarray() == pytest.approx(moved, rel=1e-4, abs=1e-8)
    assert measured.bluntness == pytest.approx(silent * own_random / (own * silent_random), rel=1e-3)
    host.windows = 0
    side_effects(host, sae, firings, latents, CONTEXT, pairs=3, seed=2, batch_tokens=batch_tokens)
    assert host.windows == 6 * len(trials) + 1


def test_own_text_is_ablation(load):
    """The same number by way of `steer`, on a real architecture."""
    host = load("gpt2", "blocks.1.hook_resid_pre")
    ids = torch.randint(5, 300, (6, 9), generator=torch.Generator().manual_seed(1))
    ids[:, 0] = host.bos_id
    mask = torch.ones_like(ids)
    x = host.activations(ids, mask)[:, 1:].reshape(-1, host.d)
    split = FakeSplit(x, document_length=8, tokens=ids[:, 1:].reshape(-1))
    split.positions -= 1
    sae = random_sae(host.d, 4)
    pre = sae.pre_activations(x).view(6, 8, 4)
    sae.threshold = pre.amax(1).sort(0).values[2:4].mean(0).clamp(min=0)
    firings = fire(sae, split)
    fired = pre.amax(1) > sae.threshold
    latent = int(np.flatnonzero((fired.sum(0) == 3).numpy())[0])
    measured = side_effects(host, sae, firings, [latent], context=9, pairs=100)
    with steer(host, sae, {latent: Ablate()}):
        ablated = host.output(ids, mask)
    own = distance(host, host.output(ids, mask), ablated)[:, 1:]
    assert measured.firings[0] == firings.counts()[latent]
    assert measured.own[0] == pytest.approx(own.sum() / measured.firings[0], rel=1e-3)


WIDTH = 64


def planted():
    """Text of idle tokens with now and then A (token 1) or B (token 2), which the model heeds only in their own
    context."""
    generator = torch.Generator().manual_seed(0)
    a, b, in_a, in_b, *rest = torch.linalg.qr(torch.randn(WIDTH, WIDTH, generator=generator))[0]
    embedding = torch.stack(rest[:VOCABULARY])
    embedding[1], embedding[2] = a + in_a, b + in_b
    weights = torch.randn(WIDTH, VOCABULARY, generator=generator) * 0.1

    def readout(x):
        logits = x @ weights
        for token, concept, context in ((3, a, in_a), (4, b, in_b)):
            # a product, so that the concept counts where its context is
            logits[..., token] += 3 * (x @ concept) * (x @ context)
        return logits

    host = FakeHost(True, readout, embedding)
    split = split_for(host, [5] * 60)
    split.tokens[:] = np.where(split.tokens < 5, 5, split.tokens)
    heads = np.arange(60) * 5 + 1
    split.tokens[heads[:20]], split.tokens[heads[20:40]] = 1, 2
    is_a, is_b = split.tokens == 1, split.tokens == 2
    rows = torch.stack([a, b, (a + b) / 2**0.5, rest[20]])
    acts = np.stack([is_a, is_b, (is_a | is_b) / 2**0.5, is_a], 1)
    return host, split, rows, firings_of(acts, split)


def of_rows(effects, rows):
    """The effects of some of the latents, in this order."""
    columns = {name: values[rows] for name, values in vars(effects).items()}
    return SideEffects(**columns)


def compared(effects, pairs, firings):
    """Latents of one SAE beside others of its own."""
    one, other = (of_rows(effects, list(side)) for side in zip(*pairs, strict=True))
    return compare_side_effects(one, other, firings, firings)


def test_a_latent_heeded_only_in_its_own_text_is_sharp_and_a_blend_spills():
    host, _, rows, firings = planted()
    sae = random_sae(WIDTH, 4)
    sae.W_dec.copy_(rows)
    measured = side_effects(host, sae, firings, [0, 1, 2, 3], CONTEXT, pairs=40)
    of_a, of_b, blend, unheeded = measured.bluntness
    assert max(of_a, of_b) < 0.1 and max(of_a, of_b) < blend and unheeded > 0.5
    # blend against A: half of what it moves is text of B; A against the blend: nothing
    paired = compared(measured, [(2, 0)], firings)
    assert 0.3 < paired["spill_a"] < 0.7 and paired["apart_a"] == 0.5
    assert (paired["spill_b"], paired["apart_b"]) == (0, 0)
    assert paired["bluntness_percent"] > 0 and paired["share_sharper"] == 0
    both = compared(measured, [(0, 1)], firings)
    assert (both["spill_a"], both["spill_b"]) == (1, 1)
    same = compared(measured, [(0, 0), (2, 2)], firings)
    assert (same["spill_a"], same["spill_b"], same["bluntness_percent"], same["share_sharper"]) == (0, 0, 0, 0.5)


def effects(latents, bluntness, moved):
    bluntness = np.asarray(bluntness, dtype=float)
    ones, count = np.where(np.isnan(bluntness), np.nan, 1.0), np.ones(len(bluntness), np.int64)
    moved = csr_array(np.asarray(moved, dtype=float))
    return SideEffects(np.asarray(latents), ones, bluntness, ones, ones, moved, count)


def test_matched_latents_by_hand():
    split = split_for(FakeHost(True), [5])
    a = effects([7, 3], [2.0, 0.5], [[1, 3, 0, 0, 0], [0, 0, 2, 0, 2]])
    b = effects([0, 1, 2], [1.0, np.nan, 1.0], [[4, 0, 0, 0, 0], [0, 0, 0, 0, 0], [0, 0, 0, 5, 5]])
    acts_a, acts_b = np.zeros((5, 8)), np.zeros((5, 3))
    acts_a[[0, 1], 7], acts_a[[2, 4], 3] = 1, 1
    acts_b[0, 0], acts_b[3:, 2] = 1, 1
    pairs = [(0, 0), (1, 2), (0, 1)]
    of_a, of_b = (of_rows(side, list(rows)) for side, rows in zip((a, b), zip(*pairs, strict=True), strict=True))
    sides = firings_of(acts_a, split), firings_of(acts_b, split)
    measured = compare_side_effects(of_a, of_b, *sides)
    assert (measured["bluntness_a"], measured["bluntness_b"]) == (1, 1)
    assert (measured["bluntness_percent"], measured["share_sharper"]) == (0, 0.5)
    # 7 against 0: 3 of 4; 3 against 2: 2 of 4; the third match has no number in b
    assert measured["spill_a"] == pytest.approx((0.75 + 0.5) / 2) and measured["spill_b"] == pytest.approx(
        (0 + 0.5) / 2
    )
    assert measured["apart_a"] == pytest.approx((0.5 + 0.5) / 2) and measured["apart_b"] == pytest.approx((0 + 0.5) / 2)
    assert measured["spill_per_firing_a"] == pytest.approx(1.25) and measured["spill_per_firing_b"] == pytest.approx(1)
    assert (measured["n_bluntness"], measured["n_spill"], measured["n_matches"]) == (2, 2, 3)
    none = compare_side_effects(of_rows(a, []), of_rows(b, []), *sides)
    assert set(none.values()) == {None, 0}


def test_latents_without_a_number():
    host = FakeHost(True)
    split = split_for(host, [5, 5, 2])
    acts = np.zeros((12, 5))
    acts[[0, 5, 10], 0] = 1  # in every window
    acts[4, 2], acts[9, 2] = 1, 1  # behind the end of the only silent window
    acts[3, 3] = 1
    acts[0, 4] = 1
    sae = random_sae(D, 5)
    sae.W_dec[4] = 0
    measured = side_effects(host, sae, firings_of(acts, split), [0, 1, 2, 3, 4, 3], CONTEXT)
    assert measured.firings.tolist() == [0, 0, 0, 1, 1, 1]
    assert (
        np.isnan(measured.own[:3]).all()
        and measured.own[3] == measured.own[5] > 0
        and measured.own[4] == measured.silent[4] == 0
    )
    assert np.isfinite(measured.bluntness).tolist() == [False, False, False, True, False, True]


@pytest.mark.parametrize("lengths", [[], [1]])
def test_no_text_and_one_token(lengths):
    host = FakeHost(False)
    split = split_for(host, [1])
    split.tokens, split.documents, split.positions = (
        c[: len(lengths)] for c in (split.tokens, split.documents, split.positions)
    )
    firings = firings_of(np.ones((len(lengths), 3)), split)
    for latents in ([], [0, 1]):
        measured = side_effects(host, random_sae(D, 3), firings, latents, CONTEXT)
        assert np.isnan(measured.own).all() and len(measured.own) == len(measured.bluntness) == len(latents)
        assert not measured.firings.any() and not measured.moved.nnz
