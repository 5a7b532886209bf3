"""A cache that others use gets more tokens: nothing is taken away, whoever reads, stops or asks for too much meanwhile."""

import os
import shutil
import threading

import numpy as np
import pytest
import torch

from metasae.data.cache import activations, growth
from metasae.data.cache.activations import harvest, harvest_points
from metasae.data.cache.cache import INDEX, LARGER, is_held, open_cache
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

    real = activations.activations_at

    def counted(*arguments):
        Passes.count += 1
        if Passes.count == Passes.stop:
            raise Passes.error
        return real(*arguments)

    monkeypatch.setattr(activations, "activations_at", counted)
    return Passes


def grow(host, stories, folder, tokens=MORE, spec=SPEC):
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


def shards(folder, split):
    return {file.name: (file.read_bytes(), file.stat().st_mtime_ns) for file in folder.glob(f"{split}-*")}


def test_only_the_split_that_lacks_tokens_is_harvested(host, stories, folder, direct, passes):
    before = {name: shards(folder, name) for name in ("train", "calibration")}
    cache = grow(host, stories, folder)
    assert_same(cache, direct)
    assert {name: shards(folder, name) for name in before} == before
    assert passes.count < 10  # 1,400 of 3,400 tokens, 250 at a time
    cache.verify()
    assert not (folder / LARGER).exists()
    assert cache.index["documents"] == direct.index["documents"]
    assert cache.index["splits"]["evaluation"] == direct.index["splits"]["evaluation"] | {
        "shards": cache.index["splits"]["evaluation"]["shards"]
    }


def test_a_split_that_was_not_asked_for_before_is_added(host, stories, tmp_path, direct):
    harvest(host, TEXT, SPEC, tmp_path, {"evaluation": 1400}, documents=stories)
    assert not is_held(tmp_path, direct.fingerprint, MORE) and is_held(
        tmp_path, direct.fingerprint, {"evaluation": 1400}
    )
    assert_same(grow(host, stories, tmp_path), direct)


def test_recipes_in_turn_harvest_no_more_than_each_lacks(host, stories, folder, passes):
    """One asks for more of one split, one for more of another: both find their tokens, and each sees exactly its own."""
    judged, trained = TOKENS | {"evaluation": 1400, "train": 700}, TOKENS | {"train": 2500, "calibration": 300}
    for tokens in (judged, trained):
        grow(host, stories, folder, tokens)
    passes.count = 0
    for tokens in (judged, trained, TOKENS, MORE):
        cache = grow(host, stories, folder, tokens)
        assert {name: cache.split(name).n_tokens for name in tokens} == tokens
    assert passes.count == 0


@pytest.mark.parametrize("split", ["evaluation", "calibration"])
def test_more_than_the_text_holds_is_refused_and_takes_nothing_away(host, stories, folder, split):
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    for _ in range(2):
        with pytest.raises(UserError, match=rf"gives [\d,]+ {split} tokens of the 1,000,000 asked for"):
            grow(host, stories, folder, TOKENS | {split: 1_000_000})
        assert {file.name: file.read_bytes() for file in folder.iterdir()} == before
    open_cache(folder).verify()


def test_a_text_that_ends_early_is_harvested_to_its_end_once(host, stories, folder, passes):
    cache = grow(host, stories, folder, TOKENS | {"train": 1_000_000})
    end = cache.split("train").n_tokens
    assert 1500 < end < 1_000_000 and cache.index["splits"]["train"]["exhausted"]
    passes.count = 0
    grow(host, stories, folder, TOKENS | {"train": 2_000_000})
    assert passes.count == 0
    # a pass for another split, which the second point needs whole, leaves the split marked as all that the text has
    harvest_points(
        host, [POINT, OTHER], TEXT, SPEC, lambda key: folder if key == cache.fingerprint else folder.parent / "other",
        MORE | {"train": 3000}, documents=stories,
    )  # fmt: skip
    again = open_cache(folder)
    assert again.index["splits"]["train"]["exhausted"] and again.split("train").n_tokens == end


def test_a_cache_that_is_open_stays_what_it_was(host, stories, folder):
    cache = open_cache(folder)
    split = cache.split("evaluation")
    rows = split.rows(np.arange(800)).clone()
    grow(host, stories, folder, spec=SPEC.model_copy(update={"shard_tokens": 70}))
    assert split.n_tokens == 800 == len(split.tokens) == len(split.documents)
    assert torch.equal(split.rows(np.arange(800)), rows) and torch.equal(torch.cat(list(split.blocks(100))), rows)
    assert np.array_equal(split.tokens, open_cache(folder, tokens=TOKENS).split("evaluation").tokens)


@pytest.mark.parametrize("error", [Killed, KeyboardInterrupt])
def test_a_growth_that_was_stopped_goes_on(host, stories, folder, passes, monkeypatch, error):
    monkeypatch.setattr(activations, "POOL_BATCHES", 1)
    monkeypatch.setattr("metasae.data.cache.cache_writer.SECONDS_BETWEEN_NOTES", 0.0)
    whole = grow(host, stories, shutil.copytree(folder, folder.parent / "whole"))
    needed, passes.count, passes.stop, passes.error = passes.count, 0, 10, error
    with pytest.raises(error):
        grow(host, stories, folder)
    assert open_cache(folder).split("evaluation").n_tokens == 800
    passes.count, passes.stop = 0, None
    cache = grow(host, stories, folder)
    assert passes.count < needed
    assert [file.name for file in sorted(folder.iterdir())] == [file.name for file in sorted(whole.folder.iterdir())]
    assert cache.index == whole.index


def test_a_process_killed_between_any_two_files_leaves_all_to_the_next(
    host, stories, folder, direct, monkeypatch, passes
):
    """Each deletion and each renaming of the change of places is, in turn, the last that the process does."""
    monkeypatch.setattr(growth.os, "replace", real := os.replace)
    alive = growth.put_in_place
    monkeypatch.setattr(growth, "put_in_place", lambda _: None)
    grow(host, stories, folder)
    ready = shutil.copytree(folder, folder.parent / "ready")
    # as one whose index is gone already: its shards are not to be mistaken for others
    steps = 0
    while True:
        place, left = shutil.copytree(ready, folder.parent / f"killed-{steps}"), [steps]

        def counted(function, left=left):
            def call(*arguments, **options):
                if left[0] == 0:
                    raise Killed
                left[0] -= 1
                return function(*arguments, **options)

            return call

        with monkeypatch.context() as patch:
            patch.setattr(growth.os, "replace", counted(real))
            patch.setattr(growth.Path, "unlink", counted(growth.Path.unlink))
            patch.setattr(growth.shutil, "rmtree", counted(shutil.rmtree))
            try:
                alive(place)
                done = True
            except Killed:
                done = False
        passes.count = 0
        with monkeypatch.context() as patch:
            patch.setattr(growth, "put_in_place", alive)
            assert_same(grow(host, stories, place), direct)
        assert passes.count == 0
        open_cache(place).verify()
        if done:
            break
        steps += 1
    assert steps > 7


def test_who_opens_a_cache_while_it_grows_sees_the_old_or_the_new(host, stories, folder):
    seen, problems, over = set(), [], threading.Event()

    def reader():
        while not over.is_set():
            try:
                split = open_cache(folder).split("evaluation")
                seen.add((split.n_tokens, len(split.documents), int(split.tokens.sum())))
            except Exception as error:
                problems.append(error)

    thread = threading.Thread(target=reader)
    thread.start()
    try:
        for count in range(900, 2000, 100):
            grow(host, stories, folder, TOKENS | {"evaluation": count})
    finally:
        over.set()
        thread.join()
    assert not problems and all(n == documents for n, documents, _ in seen)
    assert len(seen) == len({n for n, _, _ in seen})


def test_another_text_of_the_same_name_is_refused_and_takes_nothing_away(host, stories, tmp_path):
    grow(host, iter(stories), tmp_path, TOKENS)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    with pytest.raises(
        UserError, match=r"the text has changed since the cache .* was harvested; choose another harvest.cache"
    ):
        grow(host, iter(stories[3:]), tmp_path)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


def test_a_damaged_cache_is_named_before_the_model_runs(host, stories, folder, passes):
    (folder / "train-00001.safetensors").write_bytes(b"x")
    with pytest.raises(UserError, match=r"train-00001.safetensors is damaged"):
        grow(host, stories, folder)
    assert passes.count == 0 and (folder / INDEX).is_file()


def test_a_cache_folder_may_be_called_larger(host, stories, tmp_path, direct):
    with pytest.raises(UserError, match="asked for"):
        grow(host, stories, tmp_path / LARGER, TOKENS | {"evaluation": 1_000_000})
    grow(host, stories, tmp_path / LARGER, TOKENS)
    assert_same(grow(host, stories, tmp_path / LARGER), direct)


def test_points_that_lack_different_splits_grow_together(host, stories, tmp_path, direct):
    place = lambda key: tmp_path / key[:16]
    harvest_points(host, [POINT], TEXT, SPEC, place, TOKENS, documents=stories)
    harvest_points(host, [OTHER], TEXT, SPEC, place, {"evaluation": 2000, "calibration": 100}, documents=stories)
    caches = harvest_points(host, [POINT, OTHER], TEXT, SPEC, place, MORE, documents=stories)
    assert_same(caches[POINT], direct)
    assert_same(caches[OTHER], harvest(host.at(OTHER), TEXT, SPEC, tmp_path / "direct", MORE, documents=stories))
    assert open_cache(caches[OTHER].folder).split("evaluation").n_tokens == 2000
