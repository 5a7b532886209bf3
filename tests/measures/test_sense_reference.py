import numpy as np
import pytest
from sense_fakes import fires, word_of

from metasae.measures.words.sense_reference import even_parts, fit_probe, macro_f1, sense_reference


def words(seed=0):
    x, sense = fires(
        [60, 25, 21], [[0.9, 0.1, 0.1], [0.1, 0.8, 0.1], [0.2, 0.1, 0.9], [0.5, 0.5, 0.5]], seed, noise=0.3
    )
    return word_of(x, sense)


@pytest.mark.parametrize("count", [2, 8])
def test_parts_hold_every_sense_evenly(count):
    sense = np.array([0] * 50 + [1] * 21 + [2] * 3)
    part = even_parts(sense, np.arange(74), count, np.random.default_rng(0))
    for s in range(3):
        sizes = np.bincount(part[sense == s], minlength=count)
        assert sizes.max() - sizes.min() <= 1
    assert (part != even_parts(sense, np.arange(74), count, np.random.default_rng(1))).any()


def test_no_sentence_is_in_two_parts():
    rng = np.random.default_rng(0)
    sense, sentence = rng.integers(3, size=200), rng.integers(90, size=200)
    part = even_parts(sense, sentence, 2, rng)
    assert all(len(set(part[sentence == one])) == 1 for one in set(sentence.tolist()))
    assert 0.3 < part.mean() < 0.7


def test_the_same_seed_gives_the_same_reference():
    first, second, other = (sense_reference([words()], seed=seed, splits=2)[0] for seed in (3, 3, 4))
    assert (first.halves == second.halves).all() and first.ceiling == second.ceiling and first.draw == second.draw
    assert (first.halves != other.halves).any() and (
        np.sort(first.shuffled[0]) == np.sort(first.activations.sense)
    ).all()


def test_the_ceiling_is_the_probe_on_the_other_half():
    reference = sense_reference([words()], splits=2)[0]
    x, sense = reference.activations.x.double().numpy(), reference.activations.sense
    scores = []
    for half in reference.halves:
        for trained in (0, 1):
            train, test = half == trained, half != trained
            scores.append(macro_f1(sense[test], fit_probe(x[train], sense[train], 3).predict(x[test]), 3))
    ceiling = reference.ceiling
    assert ceiling.f1 == pytest.approx(np.mean(scores)) and len(ceiling.leave_one_out) == 8
    assert (ceiling.n_fits, ceiling.not_converged) == (6, 0)
    assert ceiling.f1 > 0.7 > 0.5 > ceiling.floor > 0.1
    assert np.ptp(ceiling.leave_one_out) > 0 and np.mean(ceiling.leave_one_out) == pytest.approx(ceiling.f1, abs=0.02)


def test_a_sense_in_one_half_only_counts_as_not_found():
    x, sense = fires([30, 30], [[1, 0], [0, 1]])
    sense = np.append(sense, [2, 2])
    x = np.concatenate([x, np.ones((2, 2))])
    ceiling = sense_reference([word_of(x, sense, sentence=[*range(60), 60, 60])], splits=2)[0].ceiling
    assert ceiling.f1 == pytest.approx(2 / 3, abs=0.02)
