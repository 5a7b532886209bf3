"""Windows of a latent against brute force over every token."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from worlds import random_firings, text_of, view_of

from metasae.interp.draws import KINDS, activating_windows, draw_activating, latent_windows, peaks_of, with_silent
from metasae.interp.excerpts import POSITIONS, WindowSpec


def dense(firings):
    return firings.csr.toarray()


@pytest.mark.parametrize("position", POSITIONS)
@pytest.mark.parametrize("length", [1, 5, 16])
def test_peaks_against_every_window(position, length):
    firings = random_firings()
    text, view, values = text_of(firings), view_of(firings), dense(firings)
    for latent in range(firings.n_latents):
        expected = []
        for focus in np.flatnonzero(values[:, latent]):
            start, whole = (part[0] for part in text.windows(np.array([focus]), length, position))
            if whole and start + int(np.argmax(values[start : start + length, latent])) == focus:
                expected.append((start, focus, values[focus, latent], text.scoring[focus]))
        peaks = peaks_of(text, *view.latent(latent), WindowSpec(length=length, position=position))
        assert list(zip(peaks.starts, peaks.focus, peaks.peaks, text.scoring[peaks.starts], strict=True)) == expected


def test_grid_peaks_are_one_per_window_that_fires():
    firings = random_firings(lengths=(64,) * 6, gap=False)
    values = dense(firings).reshape(-1, 8, firings.n_latents)
    for latent in range(firings.n_latents):
        peaks = peaks_of(text_of(firings), *view_of(firings).latent(latent), WindowSpec(length=8))
        assert peaks.starts.tolist() == (8 * np.flatnonzero(values[:, :, latent].any(1))).tolist()


def check_windows(firings, text, latent, windows, spec, scoring):
    values = dense(firings)[:, latent]
    contents = set()
    for start, focus, peak, stratum in zip(windows.starts, windows.focus, windows.peaks, windows.strata, strict=True):
        inside = slice(start, start + spec.length)
        assert len(set(firings.documents[inside])) == 1 and start <= focus < start + spec.length
        assert (text.scoring[inside] == scoring).all()
        assert peak == (values[inside].max() if stratum >= 0 else 0)
        assert stratum >= 0 or not values[inside].any()
        contents.add(firings.tokens[inside].tobytes())
    assert len(contents) == len(windows)
    return contents


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 10**6),
    st.lists(st.integers(1, 60), min_size=1, max_size=12),
    st.sampled_from(POSITIONS),
    st.integers(1, 12),
    st.integers(1, 8),
    st.integers(1, 12),
)
def test_train_and_score_documents_never_meet_and_silent_windows_are_silent(
    seed, lengths, position, length, count, strata
):
    """The property that the scores rest on, on any documents, spec and seed."""
    firings = random_firings(seed, tuple(lengths), gap=sum(lengths) > 60)
    spec = WindowSpec(length, position, count, count, count, strata)
    text, view = text_of(firings, seed), view_of(firings)
    enough, coverage = activating_windows(text, view, spec, seed)
    neighbours = np.array([3, 4, -1])
    for latent, windows in enough.items():
        windows = with_silent(text, view, windows, neighbours, spec, seed)
        train = check_windows(firings, text, latent, windows.train, spec, False)
        score = check_windows(firings, text, latent, windows.score, spec, True)
        assert len(train) == len(score) == count and not train & score
        documents = [set(firings.documents[part.focus]) for part in (windows.train, windows.score)]
        assert not documents[0] & documents[1]
        drawn = train | score
        ids = set(firings.tokens[windows.score.focus].tolist())
        for kind in KINDS:
            silent = check_windows(firings, text, latent, windows.silent[kind], spec, True)
            assert len(silent) <= count and not silent & drawn
            drawn |= silent
        assert set(firings.tokens[windows.silent["same_token"].focus].tolist()) <= ids
        for focus in windows.silent["neighbour"].focus:
            assert dense(firings)[focus, [3, 4]].any()
    assert coverage["live"] == len(np.flatnonzero(firings.counts())) and coverage["covered"] == len(enough)
    live = np.flatnonzero(firings.counts()).tolist()
    drawn = [latent_windows(text, view, latent, spec, seed) for latent in live]
    assert set(enough) == {w.latent for w in drawn if len(w.train) == len(w.score) == count}
    deciles = coverage["by_firing_rate"]
    assert sum(part["live"] for part in deciles) == coverage["live"]
    assert sum(part["covered"] for part in deciles) == len(enough)


def one_latent(values, length=4):
    """Documents of one window of `length` tokens each, with a firing of the given strength on its first token."""
    from sparse_firings import firings_from

    t = len(values) * length
    on, strength = np.zeros((t, 1), bool), np.zeros((t, 1))
    on[::length, 0], strength[::length, 0] = True, values
    place = np.arange(t, dtype=np.int32)
    return firings_from(on, strength, place // length, place, place % length)


def test_all_strengths_are_drawn_alike():
    firings = one_latent(np.random.default_rng(0).permutation(400) + 1.0)
    text, spec = text_of(firings), WindowSpec(length=4, train=20, score=20, strata=10)
    peaks = peaks_of(text, *view_of(firings).latent(0), spec)
    for scoring in (False, True):
        windows = draw_activating(text, peaks, scoring, 20, spec, np.random.default_rng(1), set())
        assert np.bincount(windows.strata, minlength=10).tolist() == [2] * 10
        side = np.sort(peaks.peaks[text.scoring[peaks.starts] == scoring])
        for peak, stratum in zip(windows.peaks, windows.strata, strict=True):
            assert peak in np.array_split(side, 10)[stratum]


def test_an_exhausted_stratum_is_made_up_for_by_the_others_and_too_few_peaks_give_all():
    firings = one_latent(np.arange(30) + 1.0)
    text, spec = text_of(firings), WindowSpec(length=4, strata=10)
    peaks = peaks_of(text, *view_of(firings).latent(0), spec)
    windows = draw_activating(text, peaks, True, 100, spec, np.random.default_rng(0), set())
    assert sorted(windows.starts) == sorted(peaks.starts[text.scoring[peaks.starts]])
    assert len(draw_activating(text, peaks, True, 12, spec, np.random.default_rng(0), set())) == 12


def test_repeated_text_is_drawn_once():
    firings = one_latent(np.ones(40))
    repeated = type(firings)(**{**vars(firings), "tokens": firings.positions})
    enough, coverage = activating_windows(
        text_of(repeated), view_of(repeated), WindowSpec(length=4, train=1, score=1), 0
    )
    assert not enough and coverage["too_few_score"] == 1 and coverage["too_few_train"] == 0 and coverage["live"] == 1


def test_a_latent_that_is_always_on_has_no_silent_window_and_one_without_neighbours_none_of_that_kind():
    firings = random_firings(lengths=(60,) * 10)
    text, view, spec = text_of(firings), view_of(firings), WindowSpec(length=4, train=3, score=3, silent=3)
    enough, _ = activating_windows(text, view, spec, 0)
    assert [len(part) for part in with_silent(text, view, enough[1], np.array([3, 4]), spec, 0).silent.values()] == [
        0,
        0,
        0,
    ]
    assert len(with_silent(text, view, enough[3], np.array([-1, -1]), spec, 0).silent["neighbour"]) == 0


def test_draws_follow_the_seed_and_not_the_other_latents():
    firings = random_firings(lengths=(60,) * 10)
    text, view, spec = text_of(firings), view_of(firings), WindowSpec(length=4, train=3, score=3, silent=3)
    runs = [activating_windows(text, view, spec, seed)[0][4] for seed in (0, 0, 1)]
    assert runs[0].train.starts.tolist() == runs[1].train.starts.tolist() != runs[2].train.starts.tolist()
    silent = [
        with_silent(text, view, runs[0], np.array([5]), spec, 0).silent["random"].starts.tolist() for _ in range(2)
    ]
    assert silent[0] == silent[1]
