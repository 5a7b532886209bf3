"""Every fake by hand on a small dictionary, and on dictionaries with nothing to change."""

import numpy as np
import pytest
from small_subjects import dense, drawn_subject, subject_of

from tools.fakes import (
    DENSE_RATE,
    FAKES,
    MORE_FAKES,
    merged_apart,
    merged_at_random,
    rotated,
    strongest,
    swapped_identities,
    with_dense,
    with_false_firings,
    with_junk,
    without_rarest,
    without_weakest,
)

# Latents 0 and 2 meet, 1 meets none, 3 is dead.
ACTS = [[1, 0, 2, 0], [0, 3, 0, 0], [4, 0, 6, 0], [0, 0, 0, 0]]
SEEDS = range(12)


def check(subject):
    """Firings as every measure expects them, and unit rows."""
    firings = subject.firings
    assert (firings.indptr.dtype, firings.indices.dtype, firings.values.dtype) == (np.int64, np.int32, np.float32)
    assert firings.n_latents == len(subject.rows) == len(subject.columns)
    assert firings.indptr[-1] == len(firings.indices) == len(firings.values)
    assert (firings.values > 0).all()
    for start, end in zip(firings.indptr[:-1], firings.indptr[1:], strict=True):
        assert (np.diff(firings.indices[start:end]) > 0).all()
    np.testing.assert_allclose(np.linalg.norm(subject.rows, axis=1), 1, atol=1e-6)
    np.testing.assert_array_equal(firings.documents, subject.split.documents)


ALL = FAKES | MORE_FAKES


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize(
    "subject",
    [
        subject_of(ACTS),
        subject_of(ACTS, document_length=4),
        subject_of(np.zeros((4, 3))),
        subject_of([[0, 2.0, 0]] * 3),
        subject_of(np.ones((6, 4)), document_length=2),
        drawn_subject(),
    ],
    ids=["small", "one document", "no firings", "one live latent", "all fire always", "drawn"],
)
def test_every_fake_gives_a_dictionary_whatever_it_is_given(name, subject):
    before = dense(subject)
    changed = ALL[name].make(subject, 0)
    check(changed)
    again = ALL[name].make(subject, 0)
    np.testing.assert_array_equal(dense(changed), dense(again))
    np.testing.assert_array_equal(changed.rows, again.rows)
    np.testing.assert_array_equal(dense(subject), before)


def test_merged_at_random():
    """One pair of the three live latents; its row is midway, it fires where either does, with the sum."""
    subject, pairs = subject_of(ACTS), set()
    for seed in SEEDS:
        changed = merged_at_random(subject, seed)
        check(changed)
        assert changed.firings.n_latents == 3
        np.testing.assert_array_equal(dense(changed).sum(1), np.sum(ACTS, 1))
        mixed = next(place for place, row in enumerate(changed.rows) if (row > 0).sum() == 2)
        pair = tuple(np.flatnonzero(changed.rows[mixed]))
        pairs.add(pair)
        np.testing.assert_allclose(changed.rows[mixed][list(pair)], 0.5**0.5, rtol=1e-6)
        np.testing.assert_allclose(changed.columns[mixed][list(pair)], 2)
        np.testing.assert_array_equal(dense(changed)[:, mixed], np.array(ACTS)[:, pair].sum(1))
    assert pairs == {(0, 1), (0, 2), (1, 2)}


def test_opposite_rows_merge_into_the_first():
    changed = merged_at_random(subject_of([[1, 2]], rows=[[1, 0, 0, 0, 0], [-1, 0, 0, 0, 0]]), 0)
    check(changed)
    assert dense(changed).tolist() == [[3]] and abs(changed.rows[0, 0]) == 1


def test_only_latents_that_never_meet_are_merged():
    for seed in SEEDS:
        changed = merged_apart(subject_of(ACTS), seed)
        mixed = next(row for row in changed.rows if (row > 0).sum() == 2)
        assert mixed[1] > 0 and not (mixed[0] > 0 and mixed[2] > 0)
    drawn = drawn_subject()
    fires = dense(drawn) > 0
    changed = merged_apart(drawn, 0)
    assert changed.firings.l0 == drawn.firings.l0 and len(changed.rows) >= len(drawn.rows) // 2
    np.testing.assert_array_equal((dense(changed) > 0).sum(1), fires.sum(1))


def test_where_all_meet_none_are_merged():
    subject = subject_of(np.ones((3, 4)))
    np.testing.assert_array_equal(dense(merged_apart(subject, 0)), dense(subject))


def test_identities_are_swapped_in_half_of_the_documents():
    acts = np.array([[1, 0], [2, 0], [0, 3], [4, 5]])
    for seed in SEEDS:
        subject = subject_of(acts)
        changed = dense(swapped_identities(subject, seed))
        swapped = [not np.array_equal(one, other) for one, other in zip(changed, acts, strict=True)]
        assert sum(swapped) == 2
        np.testing.assert_array_equal(changed, np.where(np.array(swapped)[:, None], acts[:, ::-1], acts))
    np.testing.assert_array_equal(dense(swapped_identities(subject, 0, share=1.0)), acts[:, ::-1])
    one_document = subject_of(acts, document_length=4)
    np.testing.assert_array_equal(dense(swapped_identities(one_document, 0)), acts)
    assert changed.shape == acts.shape and (swapped_identities(subject, 0).rows == subject.rows).all()


def test_dead_latents_are_never_swapped():
    subject = subject_of(ACTS)
    for seed in SEEDS:
        assert not dense(swapped_identities(subject, seed, share=1.0))[:, 3].any()


def test_false_firings():
    subject = drawn_subject(n_tokens=2000)
    changed = with_false_firings(subject, 0.2, 0)
    check(changed)
    before, after = dense(subject), dense(changed)
    np.testing.assert_array_equal(after[before > 0], before[before > 0])
    new = (after > 0) & (before == 0)
    # a tenth of the tokens hold a firing of the latent already
    expected = 0.2 * 0.9 * (before > 0).sum(0)
    assert (np.abs(new.sum(0) - expected) < 4 * np.sqrt(expected) + 2).all()
    for latent in range(before.shape[1]):
        assert np.isin(after[new[:, latent], latent], before[:, latent]).all()
    np.testing.assert_array_equal(dense(with_false_firings(subject, 0.0, 0)), before)


def test_junk_latents():
    subject = drawn_subject()
    changed = with_junk(subject, 7, 0)
    check(changed)
    n = len(subject.rows)
    np.testing.assert_array_equal(dense(changed)[:, :n], dense(subject))
    np.testing.assert_array_equal(changed.rows[:n], subject.rows)
    assert len(changed.rows) == n + 7 and np.isin(changed.firings.counts()[n:], subject.firings.counts()).all()
    assert not np.array_equal(with_junk(subject, 7, 1).rows, changed.rows)
    assert len(FAKES["junk_latents"].make(subject, 0).rows) == 1.5 * n
    assert not dense(with_junk(subject_of(np.zeros((4, 3))), 5, 0)).any()


def test_dense_latents():
    subject = drawn_subject()
    changed = with_dense(subject, 3, 0.25, 0)
    n = len(subject.rows)
    assert changed.firings.counts()[n:].tolist() == [100, 100, 100]
    np.testing.assert_array_equal(dense(changed)[:, :n], dense(subject))
    one = FAKES["dense_latents"].make(subject, 0)
    assert len(one.rows) == n + 1 and one.firings.counts()[-1] == DENSE_RATE * 400
    assert set(dense(with_dense(subject_of(np.zeros((4, 3))), 1, 0.5, 0))[:, 3]) == {0, 1}


def test_rows_of_a_pair_turn_in_their_plane():
    subject = subject_of(np.array(ACTS)[:, [1, 3, 2]])
    changed = rotated(subject, 0)
    check(changed)
    assert changed.firings is subject.firings
    np.testing.assert_array_equal(changed.rows[1], subject.rows[1])
    turned = changed.rows[[0, 2]][:, [0, 2]]
    np.testing.assert_allclose(np.abs(turned), 0.5**0.5, rtol=1e-6)
    assert turned[0] @ turned[1] == pytest.approx(0, abs=1e-6) and (turned < 0).sum() == 1
    alike = subject_of([[1, 2]], rows=[[0, 1, 0, 0, 0]] * 2)
    np.testing.assert_array_equal(rotated(alike, 0).rows, alike.rows)


def test_the_rarest_are_dropped_and_the_dead_with_them():
    acts = np.triu(np.ones((4, 4)))[:, ::-1] * [[1, 2, 3, 4]]
    acts = np.insert(acts, 2, 0, axis=1)
    changed = without_rarest(subject_of(acts), 0.5)
    check(changed)
    np.testing.assert_array_equal(dense(changed), acts[:, [0, 1]])
    np.testing.assert_array_equal(changed.rows, np.eye(5)[[0, 1]])


def test_the_strongest_firings_are_kept():
    changed = strongest(subject_of([[4, 1], [2, 0], [0, 3]]), 0.75)
    assert dense(changed).tolist() == [[4, 0], [2, 0], [0, 3]]
    tied = strongest(subject_of(np.ones((4, 2))), 0.5)
    assert len(tied.firings.indices) == 4


def test_each_latent_loses_its_own_weakest_firings():
    acts = np.column_stack([np.arange(1.0, 11), np.where(np.arange(10) < 3, 100, 0), np.zeros(10)])
    after = dense(without_weakest(subject_of(acts), 0.3))
    np.testing.assert_array_equal(after[:, 0], np.where(acts[:, 0] > 3, acts[:, 0], 0))
    np.testing.assert_array_equal(after[:, 1:], acts[:, 1:])
