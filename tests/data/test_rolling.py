import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from metasae import UserError
from metasae.data.cache import rolling as module
from metasae.data.cache.activations import harvest
from metasae.data.cache.rolling import RollingHarvest
from metasae.recipe import recipe

TEXT = recipe.Text(source="stories", context=16, calibration_share=0.2, evaluation_share=0.3)
SPEC = recipe.Harvest(dtype="fp32", batch_tokens=20, shard_tokens=150, window_tokens=500)
BATCH = 64


@pytest.fixture
def host(load):
    return load("gpt2", "blocks.1.hook_resid_pre")


@pytest.fixture
def rolling(host, stories, tmp_path):
    return RollingHarvest(host, TEXT, SPEC, BATCH, tmp_path / "windows", documents=stories)


def taken(rolling, count):
    """[(window, tokens, documents, positions, rows)] of the first `count` windows, each dropped before the next."""
    out = []
    for number in range(count):
        window, split = rolling.window(number)
        out.append(
            (
                window,
                split.tokens.copy(),
                split.documents.copy(),
                split.positions.copy(),
                split.rows(torch.arange(split.n_tokens)),
            )
        )
        rolling.drop(number)
    return out


def test_windows_in_turn_are_the_training_text_of_one_harvest(rolling, host, stories, tmp_path):
    windows = taken(rolling, 4)
    whole = harvest(
        host,
        TEXT,
        SPEC,
        tmp_path / "whole",
        {"train": sum(len(tokens) for _, tokens, *_ in windows)},
        documents=stories,
    ).split("train")
    for column, place in (("tokens", 1), ("documents", 2), ("positions", 3)):
        assert np.array_equal(np.concatenate([window[place] for window in windows]), getattr(whole, column))
    rows = torch.cat([window[4] for window in windows])
    assert torch.allclose(rows, whole.rows(torch.arange(whole.n_tokens)), atol=1e-5)
    assert all(window[0].tokens >= SPEC.window_tokens for window in windows)
    assert not any(module.folder_of(rolling.folder, number).exists() for number in range(4))


def test_batches_are_counted_on_over_windows(rolling):
    windows = [window for window, *_ in taken(rolling, 3)]
    assert [window.stop - window.first for window in windows] == [window.tokens // BATCH for window in windows]
    assert [window.first for window in windows] == [0, windows[0].stop, windows[1].stop]


def test_a_dropped_window_comes_back_with_the_same_bytes(rolling, host, stories):
    first = taken(rolling, 3)
    again = RollingHarvest(host, TEXT, SPEC, BATCH, rolling.folder, documents=stories)
    window, split = again.window(1)
    assert window == first[1][0]
    assert torch.equal(split.rows(torch.arange(split.n_tokens)), first[1][4])


def test_another_process_goes_on_where_one_was_stopped(rolling, host, stories, tmp_path, monkeypatch):
    undisturbed = taken(rolling, 3)
    other = RollingHarvest(host, TEXT, SPEC, BATCH, tmp_path / "stopped", documents=stories)
    other.window(0)
    pools, run_pools = [], module.run_pools

    def until_the_second(*args):
        pools.append(args)
        if len(pools) == 2:
            raise KeyboardInterrupt
        run_pools(*args)

    with monkeypatch.context() as patched:
        patched.setattr(module, "run_pools", until_the_second)
        with pytest.raises(KeyboardInterrupt):
            other.window(1)
    resumed = RollingHarvest(host, TEXT, SPEC, BATCH, tmp_path / "stopped", documents=stories)
    assert len(resumed.windows) == 1
    for number in (1, 2):
        window, split = resumed.window(number)
        assert window == undisturbed[number][0]
        assert torch.equal(split.rows(torch.arange(split.n_tokens)), undisturbed[number][4])


def test_closing_ends_what_is_harvested_ahead_behind_its_pool(rolling, host, stories, tmp_path, monkeypatch):
    undisturbed = taken(rolling, 1)
    closed = RollingHarvest(host, TEXT, SPEC, BATCH, tmp_path / "closed", documents=stories)
    pools, run_pools = [], module.run_pools
    monkeypatch.setattr(
        closed,
        "host",
        SimpleNamespace(**{name: getattr(host, name) for name in ("d", "name", "tokenizer", "frame", "pad_id")}),
    )
    closed.host.device = torch.device("cuda")

    def until_closed(hosts, *rest):
        pools.append(rest)
        while not closed._closing:
            time.sleep(0.001)
        run_pools([host], *rest)

    with monkeypatch.context() as patched:
        patched.setattr(module, "run_pools", until_closed)
        closed.ahead(0)
        while not pools:
            time.sleep(0.001)
        closed.close()
    assert len(pools) == 1 and isinstance(closed._ahead.exception(), KeyboardInterrupt)
    window, split = RollingHarvest(host, TEXT, SPEC, BATCH, tmp_path / "closed", documents=stories).window(0)
    assert window == undisturbed[0][0]
    assert torch.equal(split.rows(torch.arange(split.n_tokens)), undisturbed[0][4])


def test_where_the_text_ends_it_is_read_again(host, stories, tmp_path):
    short = stories[:40]
    rolling = RollingHarvest(host, TEXT, SPEC, BATCH, tmp_path / "windows", documents=short)
    numbers = []
    while not numbers or numbers[-1].behind is not None:
        numbers.append(rolling.window(len(numbers))[0])
    first, split = rolling.window(0)
    again, repeated = rolling.window(len(numbers))
    assert again.tokens == first.tokens and np.array_equal(repeated.tokens, split.tokens)
    assert again.first == numbers[-1].stop


def test_a_text_that_does_not_fill_a_batch_is_refused(host, stories, tmp_path):
    rolling = RollingHarvest(host, TEXT, SPEC, 100_000, tmp_path / "windows", documents=stories[:10])
    with pytest.raises(UserError, match="does not fill one batch"):
        rolling.window(0)


def test_windows_of_another_harvest_are_refused(rolling, host, stories):
    rolling.window(0)
    with pytest.raises(UserError, match="another harvest"):
        RollingHarvest(
            host, TEXT, SPEC.model_copy(update={"window_tokens": 900}), BATCH, rolling.folder, documents=stories
        )
    with pytest.raises(UserError, match="another harvest"):
        RollingHarvest(host, TEXT.model_copy(update={"context": 8}), SPEC, BATCH, rolling.folder, documents=stories)


class Text:
    """Documents that may be read again and again, and that say nothing of their words beforehand."""

    def __init__(self, documents):
        self.documents = documents

    def __iter__(self):
        return iter(self.documents)


def test_a_text_that_changed_is_refused(host, stories, tmp_path):
    taken(RollingHarvest(host, TEXT, SPEC, BATCH, tmp_path / "windows", documents=Text(stories)), 2)
    changed = RollingHarvest(
        host, TEXT, SPEC, BATCH, tmp_path / "windows", documents=Text([story + " indeed" for story in stories])
    )
    with pytest.raises(UserError, match="has changed"):
        changed.window(2)
