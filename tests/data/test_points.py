"""Several hook points in one pass, and harvests that were stopped."""

import shutil
import threading

import pytest
import torch

from metasae import UserError
from metasae.data.cache import activations, cache_writer
from metasae.data.cache.activations import fingerprint_of, harvest, harvest_points, identity
from metasae.data.cache.cache import UNFINISHED, ActivationCache
from metasae.data.model.host import activations_at
from metasae.locks import HARVEST_LOCK, harvesting_into
from metasae.progress.progress import SILENT
from metasae.recipe import recipe

TEXT = recipe.Text(source="stories", context=16, calibration_share=0.2, evaluation_share=0.3)
SPEC = recipe.Harvest(dtype="bf16", batch_tokens=60, shard_tokens=200)
TOKENS = {"train": 900, "calibration": 100, "evaluation": 300}
# the second is four times as wide, so its shards are others
POINTS = ["blocks.2.hook_resid_pre", "transformer.h.0.mlp.c_fc", "blocks.1.hook_attn_out"]


class Killed(BaseException):
    """The process is gone: nothing is tidied up. (KeyboardInterrupt is, to note where it was.)"""


@pytest.fixture(scope="module", autouse=True)
def small_pools():
    """A pool is 240 tokens, so that there are some."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(activations, "POOL_BATCHES", 4)
        yield


@pytest.fixture(scope="module")
def host(load):
    return load("gpt2", POINTS[0])


@pytest.fixture(scope="module")
def apart(load, small_pools, stories, tmp_path_factory):
    """The reference: each point harvested alone, without a stop. point -> folder."""
    folders = {point: tmp_path_factory.mktemp("apart") for point in POINTS}
    for point, folder in folders.items():
        harvest(load("gpt2", point), TEXT, SPEC, folder, TOKENS, documents=stories)
    return folders


def files_of(folder):
    return {file.name: file.read_bytes() for file in folder.iterdir() if file.name != HARVEST_LOCK}


def together(host, root, stories, points=POINTS, **changes):
    values = {
        "text": TEXT,
        "harvest": SPEC,
        "folder_of": lambda key: root / key[:16],
        "tokens": TOKENS,
        "documents": stories,
        **changes,
    }
    return harvest_points(host, points, **values)


def same(caches, apart):
    for point, cache in caches.items():
        assert files_of(cache.folder) == files_of(apart[point]), point
        assert cache.fingerprint == ActivationCache(apart[point]).fingerprint


@pytest.fixture
def passes(monkeypatch):
    """Counts the model's passes; with `stop` and `error` set, the pass of that number is not run but raises."""

    class Passes:
        count, stop, error = 0, None, KeyboardInterrupt

    real = activations_at

    def counted(*args):
        Passes.count += 1
        if Passes.count == Passes.stop:
            raise Passes.error
        return real(*args)

    monkeypatch.setattr("metasae.data.cache.passes.activations_at", counted)
    return Passes


def test_several_points_in_one_pass_are_several_harvests_to_the_byte(host, apart, stories, tmp_path, passes):
    caches = together(host, tmp_path, stories)
    one = passes.count
    same(caches, apart)
    assert len({cache.folder for cache in caches.values()}) == 3
    assert caches[POINTS[1]].d == 128 and caches[POINTS[0]].d == 32
    harvest(host, TEXT, SPEC, tmp_path / "alone", TOKENS, documents=stories)
    assert passes.count == 2 * one


def test_a_run_at_one_of_the_points_finds_its_cache(host, stories, tmp_path, passes):
    together(host, tmp_path, stories)
    passes.count = 0
    for point in POINTS:
        there = host.at(point)
        key = fingerprint_of(identity(there, TEXT, SPEC, stories))
        harvest(there, TEXT, SPEC, tmp_path / key[:16], TOKENS, documents=stories)
    assert passes.count == 0


def test_points_that_are_there_are_not_harvested_again(host, apart, stories, tmp_path, passes):
    first = together(host, tmp_path, stories, [POINTS[1]])
    before = {file: file.stat().st_mtime_ns for file in first[POINTS[1]].folder.iterdir()}
    caches = together(host, tmp_path, stories)
    same(caches, apart)
    assert {file: file.stat().st_mtime_ns for file in before} == before
    passes.count = 0
    assert list(together(host, tmp_path, stories, [POINTS[0], POINTS[1], POINTS[0]])) == POINTS[:2]
    assert passes.count == 0


def test_points_cannot_share_a_folder(host, stories, tmp_path):
    with pytest.raises(UserError, match=r"can hold one hook point, and 3 are asked for; leave harvest\.cache empty"):
        together(host, tmp_path, stories, folder_of=lambda _: tmp_path)
    with pytest.raises(UserError, match="did you mean 'blocks"):
        together(host, tmp_path, stories, [POINTS[0], "blocks.1.hook_resid_prr"])
    assert not list(tmp_path.iterdir())


@pytest.fixture
def whole(host, stories, tmp_path, passes):
    """The model's passes in a harvest that is not stopped."""
    together(host, tmp_path / "whole", stories)
    count, passes.count = passes.count, 0
    return count


@pytest.mark.parametrize("error", [KeyboardInterrupt, Killed])
@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_a_stopped_harvest_goes_on_to_the_same_bytes(
    host, apart, stories, tmp_path, passes, whole, monkeypatch, error, share
):
    monkeypatch.setattr(cache_writer, "SECONDS_BETWEEN_NOTES", 0.0 if error is Killed else 1e9)
    passes.stop, passes.error = max(int(share * whole), 1), error
    with pytest.raises(error):
        together(host, tmp_path, stories)
    run = passes.count - 1
    passes.count, passes.stop = 0, None
    caches = together(host, tmp_path, stories)
    same(caches, apart)
    # at most the pool it was in runs twice
    assert whole <= run + passes.count < whole + 2 * activations.POOL_BATCHES < 1.5 * whole
    assert not any((cache.folder / UNFINISHED).exists() for cache in caches.values())


def test_a_harvest_may_be_stopped_many_times(host, apart, stories, tmp_path, passes):
    passes.stop = 10
    for _ in range(20):
        passes.count = 0
        try:
            caches = together(host, tmp_path, stories)
            break
        except KeyboardInterrupt:
            continue
    same(caches, apart)


def test_stopped_between_the_last_note_and_the_index(host, apart, stories, tmp_path, monkeypatch):
    finish = cache_writer.CacheWriter.finish

    def die(self, *args):
        if self.d == 128:
            raise Killed
        finish(self, *args)

    monkeypatch.setattr(cache_writer.CacheWriter, "finish", die)
    with pytest.raises(Killed):
        together(host, tmp_path, stories)
    monkeypatch.undo()
    monkeypatch.setattr("metasae.data.cache.passes.activations_at", lambda *_: pytest.fail("the model ran again"))
    same(together(host, tmp_path, stories), apart)


def test_a_text_that_ends_early_is_resumed_too(host, stories, tmp_path, passes):
    tokens = {"train": 10**6, "calibration": 100}
    whole = together(host, tmp_path / "whole", stories, tokens=tokens)
    passes.count, passes.stop = 0, passes.count // 2
    with pytest.raises(KeyboardInterrupt):
        together(host, tmp_path, stories, tokens=tokens)
    passes.stop = None
    again = together(host, tmp_path, stories, tokens=tokens)
    for point in POINTS:
        assert files_of(again[point].folder) == files_of(whole[point].folder)


def interrupted(host, root, stories, passes, points=POINTS, stop=18):
    passes.count, passes.stop = 0, stop
    with pytest.raises(KeyboardInterrupt):
        together(host, root, stories, points)
    passes.count, passes.stop = 0, None


def test_points_that_stopped_at_different_places_go_on_together(host, apart, stories, tmp_path, passes, whole):
    interrupted(host, tmp_path, stories, passes, POINTS[:1], stop=20)
    interrupted(host, tmp_path, stories, passes, POINTS[1:], stop=12)
    same(together(host, tmp_path, stories), apart)
    assert passes.count < whole
    # one that has not begun sends all of them to the beginning
    interrupted(host, tmp_path / "new", stories, passes, POINTS[:1])
    same(together(host, tmp_path / "new", stories), apart)


@pytest.mark.parametrize("damage", ["gone", "cut", "note"])
def test_what_cannot_be_gone_on_with_starts_anew(host, apart, stories, tmp_path, passes, damage):
    interrupted(host, tmp_path, stories, passes)
    folder = next(file.parent for file in tmp_path.rglob(UNFINISHED))
    if damage == "gone":
        (folder / "train-00000.safetensors").unlink()
    elif damage == "cut":
        shard = folder / "train-00001.safetensors"
        shard.write_bytes(shard.read_bytes()[:100])
    else:
        (folder / UNFINISHED).write_text("[1")
    same(together(host, tmp_path, stories), apart)


def test_other_counts_of_tokens_start_anew(host, stories, tmp_path, passes):
    interrupted(host, tmp_path, stories, passes)
    tokens = {**TOKENS, "train": 500}
    fewer, direct = (
        together(host, tmp_path, stories, tokens=tokens),
        together(host, tmp_path / "direct", stories, tokens=tokens),
    )
    for point in POINTS:
        assert files_of(fewer[point].folder) == files_of(direct[point].folder)


def test_a_text_that_changed_meanwhile_is_refused(host, stories, tmp_path, passes):
    with pytest.raises(KeyboardInterrupt):
        passes.stop = 18
        together(host, tmp_path, iter(stories))
    passes.stop = None
    folder = next(file.parent for file in tmp_path.rglob(UNFINISHED))
    with pytest.raises(UserError, match="it continues where it stopped"):
        ActivationCache(folder)
    with pytest.raises(UserError, match="'stories' has changed since the harvest was interrupted"):
        together(host, tmp_path, iter(["another first story", *stories]))


def test_a_second_harvest_waits_and_uses_the_firsts_cache(host, apart, stories, tmp_path, monkeypatch):
    monkeypatch.setattr("metasae.data.cache.passes.activations_at", lambda *_: pytest.fail("the model ran"))
    said, waiting, done = [], threading.Event(), []

    class Progress:
        task = SILENT.task

        def say(self, line):
            said.append(line)
            waiting.set()

    def second():
        done.append(harvest(host, TEXT, SPEC, tmp_path, TOKENS, Progress(), documents=stories))

    with harvesting_into(tmp_path, SILENT):
        thread = threading.Thread(target=second)
        thread.start()
        assert waiting.wait(60) and not done
        for file in apart[POINTS[0]].iterdir():
            if file.name != HARVEST_LOCK:
                shutil.copy(file, tmp_path)
    thread.join(60)
    assert "waiting for it" in said[0] and torch.equal(
        done[0].split("train").rows([5]), ActivationCache(apart[POINTS[0]]).split("train").rows([5])
    )
