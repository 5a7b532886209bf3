"""A recipe that needs more tokens than a cache holds has its own cache beside it; the smaller one stays as it is."""

import shutil

import numpy as np
import pytest
import torch

from metasae.data.cache import activations
from metasae.data.cache.activations import harvest, harvest_points
from metasae.data.cache.cache import INDEX, UNFINISHED, ActivationCache, beside, is_held, large_enough
from metasae.data.model.host import activations_at
from metasae.errors import UserError
from metasae.recipe import recipe

TEXT = recipe.Text(source="stories", context=16, calibration_share=0.2, evaluation_share=0.3)
SPEC = recipe.Harvest(dtype="fp32", batch_tokens=250, shard_tokens=300)
TOKENS = {"train": 1500, "calibration": 500, "evaluation": 800}
MORE = TOKENS | {"evaluation": 1400}
POINT, OTHER = "blocks.1.hook_resid_pre", "blocks.2.hook_resid_pre"


class Killed(BaseException):
    """The process is gone: nothing is tidied up."""


@pytest.fixture(scope="module")
def host(load):
    return load("gpt2", POINT)


@pytest.fixture(scope="module")
def harvested(host, stories, tmp_path_factory):
    folder = tmp_path_factory.mktemp("harvested")
    harvest(host, TEXT, SPEC, folder, TOKENS, documents=stories)
    return folder


@pytest.fixture(scope="module")
def direct(host, stories, tmp_path_factory):
    """The reference: the larger harvest from the start."""
    return harvest(host, TEXT, SPEC, tmp_path_factory.mktemp("direct"), MORE, documents=stories)


@pytest.fixture
def folder(harvested, tmp_path):
    return shutil.copytree(harvested, tmp_path / "cache")


@pytest.fixture
def passes(monkeypatch):
    """Counts the model's passes; with `stop` set, the pass of that number is not run but raises `error`."""

    class Passes:
        count, stop, error = 0, None, Killed

    real = activations_at

    def counted(*arguments):
        Passes.count += 1
        if Passes.count == Passes.stop:
            raise Passes.error
        return real(*arguments)

    monkeypatch.setattr("metasae.data.cache.passes.activations_at", counted)
    return Passes


def more(host, stories, folder, tokens=MORE, spec=SPEC):
    return harvest(host, TEXT, spec, folder, tokens, documents=stories)


def assert_same(cache, other, splits=TOKENS):
    """Tokens and documents exactly; activations and their sums up to rounding, as other windows met in a batch."""
    for name in splits:
        one, two = cache.split(name), other.split(name)
        assert one.n_tokens == two.n_tokens
        assert all(
            np.array_equal(getattr(one, column), getattr(two, column))
            for column in ("tokens", "documents", "positions")
        )
        assert torch.allclose(torch.cat(list(one.blocks(500))), torch.cat(list(two.blocks(500))), atol=1e-5)
        assert torch.allclose(one.mean, two.mean, atol=1e-6) and one.mean_square == pytest.approx(two.mean_square)


def files_of(folder):
    return {file.name: (file.read_bytes(), file.stat().st_mtime_ns) for file in folder.iterdir()}


def test_a_larger_need_is_a_cache_of_its_own_and_the_smaller_one_stays(host, stories, folder, direct):
    before = files_of(folder)
    cache = more(host, stories, folder)
    assert cache.folder == beside(folder, MORE) == folder.parent / "cache-1500-500-1400"
    assert_same(cache, direct)
    assert cache.index == direct.index and cache.fingerprint == ActivationCache(folder).fingerprint
    assert files_of(folder) == before


def test_a_split_that_was_not_asked_for_before_is_a_larger_need(host, stories, tmp_path, direct):
    harvest(host, TEXT, SPEC, tmp_path / "cache", {"evaluation": 1400}, documents=stories)
    assert not is_held(tmp_path / "cache", direct.fingerprint, MORE)
    assert is_held(tmp_path / "cache", direct.fingerprint, {"evaluation": 1400})
    assert_same(more(host, stories, tmp_path / "cache"), direct)


def test_recipes_in_turn_use_the_first_cache_that_is_large_enough(host, stories, folder, passes):
    """One asks for more of one split, one for more of another: both find their tokens, each exactly its own."""
    judged, trained = TOKENS | {"evaluation": 1400, "train": 700}, TOKENS | {"train": 2500, "calibration": 300}
    for tokens in (judged, trained):
        more(host, stories, folder, tokens)
    passes.count = 0
    for tokens in (judged, trained, TOKENS, {"train": 2000}, {"evaluation": 1000}):
        cache = more(host, stories, folder, tokens)
        assert {name: cache.split(name).n_tokens for name in tokens} == tokens
    assert passes.count == 0
    assert more(host, stories, folder, TOKENS).folder == folder
    assert large_enough(folder, cache.fingerprint, MORE | {"train": 2500}) is None


@pytest.mark.parametrize("split", ["evaluation", "calibration"])
def test_more_than_the_text_holds_is_refused_and_takes_nothing_away(host, stories, folder, split):
    before = files_of(folder)
    for _ in range(2):
        with pytest.raises(UserError, match=rf"gives [\d,]+ {split} tokens of the 1,000,000 asked for"):
            more(host, stories, folder, TOKENS | {split: 1_000_000})
        after = files_of(folder)
        assert {name: after[name] for name in before} == before
        assert list(folder.parent.iterdir()) == [folder]


def test_a_text_that_ends_early_is_harvested_to_its_end_once(host, stories, folder, passes):
    cache = more(host, stories, folder, TOKENS | {"train": 1_000_000})
    end = cache.split("train").n_tokens
    assert 1500 < end < 1_000_000 and cache.index["splits"]["train"]["exhausted"]
    passes.count = 0
    assert more(host, stories, folder, TOKENS | {"train": 2_000_000}).folder == cache.folder
    assert passes.count == 0


@pytest.mark.parametrize("error", [Killed, KeyboardInterrupt])
def test_a_larger_harvest_that_was_stopped_goes_on(host, stories, folder, passes, monkeypatch, error):
    monkeypatch.setattr(activations, "POOL_BATCHES", 1)
    monkeypatch.setattr("metasae.data.cache.cache_writer.SECONDS_BETWEEN_NOTES", 0.0)
    whole = more(host, stories, shutil.copytree(folder, folder.parent / "whole"))
    needed, passes.count, passes.stop, passes.error = passes.count, 0, 10, error
    with pytest.raises(error):
        more(host, stories, folder)
    assert ActivationCache(folder).split("evaluation").n_tokens == 800 and (beside(folder, MORE) / UNFINISHED).is_file()
    passes.count, passes.stop = 0, None
    cache = more(host, stories, folder)
    assert passes.count < needed
    assert [file.name for file in sorted(cache.folder.iterdir())] == [
        file.name for file in sorted(whole.folder.iterdir())
    ]
    assert cache.index == whole.index


def test_another_harvest_beside_it_is_refused(host, stories, folder):
    other = harvest(host.at(OTHER), TEXT, SPEC, beside(folder, MORE), TOKENS, documents=stories)
    with pytest.raises(UserError, match=r"was harvested with other settings \(point: .*choose another harvest\.cache"):
        more(host, stories, folder)
    assert more(host, stories, folder, TOKENS).folder == folder != other.folder


def test_a_damaged_cache_is_named_before_the_model_runs(host, stories, folder, passes):
    (folder / "train-00001.safetensors").write_bytes(b"x")
    with pytest.raises(UserError, match=r"train-00001.safetensors is damaged"):
        more(host, stories, folder, TOKENS)
    assert passes.count == 0 and (folder / INDEX).is_file()


def test_points_that_lack_different_splits_are_harvested_together(host, stories, tmp_path, direct, passes):
    def place(key):
        return tmp_path / key[:16]

    harvest_points(host, [POINT], TEXT, SPEC, place, TOKENS, documents=stories)
    harvest_points(host, [OTHER], TEXT, SPEC, place, {"evaluation": 2000, "calibration": 100}, documents=stories)
    one = passes.count
    caches = harvest_points(host, [POINT, OTHER], TEXT, SPEC, place, MORE, documents=stories)
    both = passes.count - one
    assert_same(caches[POINT], direct)
    passes.count = 0
    assert_same(caches[OTHER], harvest(host.at(OTHER), TEXT, SPEC, tmp_path / "direct", MORE, documents=stories))
    assert passes.count == both


def test_a_cache_folder_may_be_the_current_one(host, stories, folder, direct, monkeypatch):
    monkeypatch.chdir(folder)
    assert_same(more(host, stories, "."), direct)
    assert beside(folder, MORE).is_dir()
