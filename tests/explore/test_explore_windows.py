"""The windows that show a latent: which are chosen, against loops, and whether packing keeps them."""

import numpy as np
import pytest
from explored import LENGTHS, of_latent, random_firings, text

from metasae.explore.store.blobs import LENGTH, Cells, pack_windows, short, unpack_windows
from metasae.explore.store.open_store import stretches_of
from metasae.measures.firing.by_latent import by_latent
from sparse_firings import firings_from


def chosen_by_hand(firings, latent, count):
    """(start, length, peak, decile, values) of each window, strong first, by the words of the module."""
    tokens, values = of_latent(firings, latent)
    documents, positions, n_tokens = firings.documents, firings.positions, firings.n_tokens
    begins = [
        t for t in range(n_tokens) if t == 0 or documents[t] != documents[t - 1] or positions[t] != positions[t - 1] + 1
    ]
    ends = [*begins[1:], n_tokens]
    peaks = {}
    for token, value in zip(tokens.tolist(), values.tolist(), strict=True):
        stretch = max(i for i, begin in enumerate(begins) if begin <= token)
        cell = stretch, (token - begins[stretch]) // LENGTH
        if cell not in peaks or value > peaks[cell][1]:
            peaks[cell] = token, value, begins[stretch], ends[stretch]
    strong, contents = [], set()
    for token, value, begin, end in sorted(peaks.values(), key=lambda peak: (-peak[1], peak[0])):
        start = max(min(token - LENGTH // 2, end - LENGTH), begin)
        stop = min(start + LENGTH, end)
        content = tuple(firings.tokens[start:stop].tolist())
        if content not in contents:
            contents.add(content)
            strong.append((start, stop - start, token, value))
    shown = set(range(len(strong))) if len(strong) <= count else set()
    if not shown:
        weaker = count // 13 if count >= 13 else count // 10
        tenths = [[r for r in range(len(strong)) if r * 10 // len(strong) == tenth] for tenth in range(1, 10)]
        for tenth in tenths:
            for j in range(weaker):
                if tenth:
                    shown.add(tenth[min(-(-j * len(tenth) // weaker), len(tenth) - 1)])
        for r in range(len(strong)):
            if len(shown) < count:
                shown.add(r)
    windows = []
    for rank, (start, length, peak, _) in enumerate(strong):
        if rank in shown:
            row = [0.0] * length
            for token, value in zip(tokens.tolist(), values.tolist(), strict=True):
                if start <= token < start + length:
                    row[token - start] = value
            windows.append((start, length, peak, 9 - rank * 10 // len(strong), row))
    return windows


def windows(firings, count):
    """Of every latent, through the fast path."""
    view = by_latent(firings)
    entries = np.unique(firings.tokens, return_inverse=True)[1]
    cells = Cells.of(entries, stretches_of(firings.documents, firings.positions)[0])
    latent = np.repeat(np.arange(view.n_latents), view.counts())
    blobs = pack_windows(latent, view.tokens, view.values, cells, view.n_latents, count)
    return [
        [(start, len(row), start + peak, decile, row) for decile, start, peak, row in unpack_windows(blob)]
        for blob in blobs
    ]


def agree(firings, counts=(1, 5, 10, 13, 40)):
    for count in counts:
        for latent, shown in enumerate(windows(firings, count)):
            assert shown == chosen_by_hand(firings, latent, count), (latent, count)


@pytest.mark.parametrize("seed", range(4))
def test_equals_loops_on_random_firings(seed):
    agree(random_firings(seed, n=7, lengths=LENGTHS * 2, vocabulary=3 + 20 * seed))


def test_equals_loops_with_many_peaks():
    # 60 documents of two cells: more peaks than windows
    agree(random_firings(9, n=6, lengths=(70,) * 60, vocabulary=500), counts=(13, 40))


def test_repeated_text_is_shown_once():
    documents, _, positions = text((64,) * 6, gap=False)
    tokens = np.tile(np.arange(64), 6).astype(np.int32)
    on = np.zeros((len(tokens), 1), bool)
    on[10::64] = True
    firings = firings_from(on, np.arange(len(tokens))[:, None] / 10 + 1.0, documents, tokens, positions)
    (shown,) = windows(firings, 40)
    assert len(shown) == 1
    assert shown[0][2] == 5 * 64 + 10  # the strongest of the six
    agree(firings)


@pytest.mark.parametrize("lengths", [(1,), (1, 1, 1), (31,), (32,), (33,)])
def test_short_documents(lengths):
    documents, tokens, positions = text(lengths, gap=False)
    on = np.ones((len(tokens), 2), bool)
    on[:, 1] = False
    agree(firings_from(on, np.full(on.shape, 0.5), documents, tokens, positions))


def test_no_firings_at_all():
    documents, tokens, positions = text()
    on = np.zeros((len(tokens), 3), bool)
    assert windows(firings_from(on, on.astype(float), documents, tokens, positions), 40) == [[], [], []]


def test_strong_windows_come_first_and_every_tenth_is_shown():
    firings = random_firings(3, n=5, lengths=(70,) * 60, vocabulary=5000)
    for latent in (1, 3):
        shown = windows(firings, 40)[latent]
        deciles = [decile for *_, decile, _ in shown]
        assert len(shown) == 40
        assert deciles == sorted(deciles, reverse=True)
        assert set(deciles) == set(range(10))
        assert deciles.count(9) >= 10
        peaks = [values[peak - start] for start, _, peak, _, values in shown]
        assert peaks == sorted(peaks, reverse=True)


def test_equal_windows_have_equal_numbers_and_others_do_not():
    """Also of windows that are cut off by the end of their stretch."""
    rng = np.random.default_rng(0)
    once = np.repeat(rng.integers(3, size=60), rng.integers(1, 40, 60))
    entries = np.concatenate([once, once, rng.integers(2, size=300)])
    first = np.array([0, 10, 15, len(once), len(once) + 10, 2 * len(once)])
    cells = Cells.of(entries, first)
    windows = [tuple(entries[t : min(t + LENGTH, cells.end[t])].tolist()) for t in range(len(entries))]
    numbers = {}
    for number, window in zip(cells.content.tolist(), windows, strict=True):
        numbers.setdefault(number, set()).add(window)
    assert all(len(alike) == 1 for alike in numbers.values())
    assert len(numbers) == len(set(windows)) < len(windows)


def test_activations_keep_six_digits():
    assert short(float(np.float32(0.1))) == 0.1
    assert short(1234567.0) == 1234570.0
