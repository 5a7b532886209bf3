"""Hand-made dictionaries and what is done to them, against dense arithmetic."""

import numpy as np
import pytest
import torch
from scipy.sparse import csr_array

from metasae.data.planted.planted import WorldSpec, plant
from metasae.data.planted.planted_cache import PlantedSplit
from metasae.measures.truth.truth import as_firings
from tools.subjects import (
    FIRES_ABOVE,
    Subject,
    _refitted,
    dictionary,
    in_fewer_documents,
    noisy,
    read_by_encoder,
    sae_of,
    sparser_at_equal_fvu,
    thinned,
    twinned,
)

PLAN = WorldSpec(
    d=24,
    independent=10,
    parents=2,
    words=3,
    sense_shares=(0.6, 0.4),
    atoms=6,
    composites=4,
    max_cosine=0.7,
    noise=0.05,
    floor=0.1,
    spread=0.6,
)


@pytest.fixture(scope="module")
def split():
    return PlantedSplit(plant(PLAN, 0), 3000, 0)


@pytest.fixture(scope="module")
def subject(split):
    return dictionary(split, blended=(0, 2), composed=True)


def dense(subject):
    return subject.firings.csr.toarray()


def check(subject):
    """Firings as every measure expects them, and unit rows."""
    firings = subject.firings
    assert firings.indptr.dtype == np.int64 and firings.indices.dtype == np.int32 and firings.values.dtype == np.float32
    assert (
        firings.n_latents == len(subject.rows)
        and firings.indptr[-1] == len(firings.indices) == len(firings.values)
        and (firings.values > 0).all()
    )
    for start, end in zip(firings.indptr[:-1], firings.indptr[1:], strict=True):
        assert (np.diff(firings.indices[start:end]) > 0).all()
    np.testing.assert_allclose(np.linalg.norm(subject.rows, axis=1), 1, atol=1e-6)
    np.testing.assert_array_equal(firings.documents, subject.split.documents)


def test_one_latent_per_feature(split):
    changed = dictionary(split)
    check(changed)
    a = split.activations.toarray()
    np.testing.assert_allclose(dense(changed), np.where(a > FIRES_ABOVE, a, 0), rtol=1e-6)
    np.testing.assert_allclose(changed.rows, split.world.directions, atol=1e-6)
    assert torch.equal(changed.sae.W_enc, changed.sae.W_dec.t())


def test_blended_words_and_composites(split, subject):
    check(subject)
    world, m = split.world, split.world.n_features
    events, z = split.events.toarray(), dense(subject)
    n_single = m - 4
    assert z.shape[1] == n_single + 2 + 4
    for number, word in enumerate((0, 2)):
        senses = np.flatnonzero(world.word == word)
        row = 0.6 * world.directions[senses[0]] + 0.4 * world.directions[senses[1]]
        row /= np.linalg.norm(row)
        np.testing.assert_allclose(subject.rows[n_single + number], row, atol=1e-6)
        read = events[:, senses] @ (world.directions[senses] @ row)
        np.testing.assert_allclose(z[:, n_single + number], np.where(read > FIRES_ABOVE, read, 0), rtol=1e-5)
    for number, members in enumerate(world.members):
        whole = world.directions[list(members)].sum(0)
        column = n_single + 2 + number
        rebuilt = z[:, column : column + 1] * subject.rows[column]
        fires = z[:, column] > 0
        assert fires.any()
        np.testing.assert_allclose(rebuilt[fires], events[fires, m + number][:, None] * whole, atol=1e-5)
    # an atom's latent fires on the atom by itself only
    atom = world.members[0][0]
    place = np.flatnonzero(np.abs(subject.rows[:n_single] - world.directions[atom]).max(1) < 1e-6)[0]
    np.testing.assert_allclose(z[:, place], np.where(events[:, atom] > FIRES_ABOVE, events[:, atom], 0), rtol=1e-6)


def test_fvu_against_dense_arithmetic(subject):
    x = subject.split.x.double().numpy()
    error = x - dense(subject).astype(float) @ subject.rows.astype(float)
    assert subject.fvu() == pytest.approx((error**2).sum() / ((x - x.mean(0)) ** 2).sum(), rel=1e-9)


def test_thinned(subject):
    changed = thinned(subject, 0.25, 0)
    check(changed)
    before, after = dense(subject), dense(changed)
    assert (after[after > 0] == before[after > 0]).all()
    n = len(subject.firings.indices)
    assert abs(len(changed.firings.indices) - 0.75 * n) < 4 * np.sqrt(n * 0.25 * 0.75)
    np.testing.assert_array_equal(dense(thinned(subject, 0.25, 0)), after)
    assert (dense(thinned(subject, 0.25, 1)) != after).any()
    np.testing.assert_array_equal(dense(thinned(subject, 0.0, 0)), before)
    assert len(thinned(subject, 1.0, 0).firings.indices) == 0


def small_subject(activations):
    activations = np.asarray(activations, np.float32)
    split = PlantedSplit(plant(WorldSpec(d=4, independent=1), 0), len(activations), 0)
    rows = np.eye(4)[: activations.shape[1]]
    return Subject(sae_of(rows, rows), as_firings(csr_array(activations), split), split)


def test_latents_in_half_of_the_documents(subject):
    changed = in_fewer_documents(subject, 0.5, 0)
    check(changed)
    before, after, documents = dense(subject), dense(changed), subject.firings.documents
    total = len(np.unique(documents))
    chosen = [{d for d in range(total) if (after[documents == d, i] > 0).any()} for i in range(before.shape[1])]
    for i, kept in enumerate(chosen):
        inside = np.isin(documents, list(kept))
        np.testing.assert_array_equal(after[inside, i], before[inside, i])
        assert len(kept) <= round(total / 2)
    assert len({tuple(sorted(kept)) for kept in chosen}) == len(chosen)
    assert changed.firings.l0 == pytest.approx(subject.firings.l0 / 2, rel=0.1)
    np.testing.assert_array_equal(dense(in_fewer_documents(subject, 1.0, 0)), before)


def test_noise_on_rows(subject):
    changed = noisy(subject, 0.3, 0)
    check(changed)
    assert changed.firings is subject.firings and torch.equal(changed.sae.W_enc, subject.sae.W_enc)
    cosines = (changed.rows * subject.rows).sum(1)
    assert cosines.min() > 0.9 and cosines.mean() == pytest.approx(1 / np.sqrt(1.09), abs=0.01)


def test_twins_by_hand():
    subject = small_subject([[1, 0, 2], [0, 3, 0], [4, 0, 6]])
    both = twinned(subject, np.array([0, 2]))
    check(both)
    assert dense(both).tolist() == [[0.5, 0, 1, 0.5, 1], [0, 3, 0, 0, 0], [2, 0, 3, 2, 3]]
    np.testing.assert_array_equal(both.rows, subject.rows[[0, 1, 2, 0, 2]])
    for seed in range(4):
        z = dense(twinned(subject, np.array([0, 2]), seed))
        np.testing.assert_array_equal(z[:, :3] + np.stack([z[:, 3], 0 * z[:, 3], z[:, 4]], 1), dense(subject))
        assert (z[:, [0, 2]] * z[:, [3, 4]] == 0).all()


def test_twins_rebuild_what_the_latents_did(subject):
    every = np.arange(len(subject.rows))
    for changed in (twinned(subject, every), twinned(subject, every, 3)):
        check(changed)
        assert changed.fvu() == pytest.approx(subject.fvu(), rel=1e-6)
    turns = twinned(subject, every, 3)
    assert turns.firings.l0 == subject.firings.l0
    share = turns.firings.counts()[len(every) :].sum() / subject.firings.counts().sum()
    assert share == pytest.approx(0.5, abs=0.02)


def test_what_an_encoder_reads(subject):
    changed = read_by_encoder(subject)
    check(changed)
    read = subject.split.x.numpy() @ subject.rows.T
    np.testing.assert_allclose(dense(changed), np.where(dense(subject) > 0, np.maximum(read, 0), 0), atol=1e-5)


@pytest.mark.parametrize("cut", [0.0, 0.7])
def test_refitting_against_a_least_squares_fit_of_each_token(subject, cut):
    changed = _refitted(subject, cut)
    check(changed)
    x, rows, before, after = (
        subject.split.x.double().numpy(),
        subject.rows.astype(float),
        dense(subject),
        dense(changed),
    )
    for t in range(300):
        active = np.flatnonzero(before[t] > cut)
        expected = np.zeros(len(rows))
        expected[active] = np.linalg.lstsq(rows[active].T, x[t], rcond=None)[0]
        np.testing.assert_allclose(after[t], np.maximum(expected, 0), atol=2e-4)


def test_twins_share_what_is_refitted(subject):
    twins = twinned(subject, np.arange(len(subject.rows)))
    z = dense(_refitted(twins, 0.0))
    n = len(subject.rows)
    np.testing.assert_allclose(z[:, :n], z[:, n:], atol=2e-3)


def test_sparser_at_equal_fvu(subject):
    before = read_by_encoder(subject)
    changed = sparser_at_equal_fvu(before)
    check(changed)
    assert 0.999 * before.fvu() < changed.fvu() <= before.fvu() and changed.firings.l0 < 0.95 * before.firings.l0
    assert ((dense(changed) > 0) <= (dense(before) > 0)).all()


def test_what_no_refit_can_match_is_refused():
    """Strengths that rebuild x to the last bit: the trace of ridge in the fit does worse."""
    subject = small_subject([[1, 0, 2], [0, 3, 0], [4, 0, 6]])
    subject.split.x[:] = torch.tensor(dense(subject) @ subject.rows)
    with pytest.raises(ValueError, match="rebuilds x better"):
        sparser_at_equal_fvu(subject)
