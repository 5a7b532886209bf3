"""Verdicts and proposals: whatever is proposed was worked out again and fits."""

import numpy as np
import pytest

from metasae.doctor import fit
from metasae.doctor.estimate import Needs, needs
from metasae.errors import UserError
from metasae.recipe.recipe import Recipe

GB = 10**9


def room(memory=20, cache=60, run=None, gpu=None):
    return fit.Room(int(memory * GB), gpu, int(cache * GB), int((run or cache) * GB), shared=run is None)


def needed(recipe: Recipe) -> Needs:
    return needs(recipe, d=1280, model=1.5 * GB, vocabulary=50_000)


def applied(recipe, settings):
    return Recipe.load(recipe.model_dump(mode="json"), dict(settings))


PAPER = Recipe.load("paper-gpt2-large")
LARGE_BATCH = applied(PAPER, [("sae.n", 4096), ("train.batch", 65536)])


def test_what_fits_needs_no_change():
    assert fit.changes(PAPER, needed, room(cache=1000)) == []


def test_disk_is_had_from_windows_and_where_they_do_not_go_from_fewer_tokens():
    two_points = applied(PAPER, [("hook.also", ["blocks.9.hook_resid_pre"])])
    for recipe, wanted in ((PAPER, "harvest.window_tokens"), (two_points, "train.tokens")):
        (key, value), *rest = fit.changes(recipe, needed, room(cache=60))
        assert key == wanted and not rest
        assert not fit.shortages(needed(applied(recipe, [(key, value)])), room(cache=60))
        # and not from far fewer than needed
        assert fit.shortages(needed(applied(recipe, [(key, 1.12 * value // 1)])), room(cache=60))


def test_windows_are_wide_enough_to_shuffle_in():
    short = applied(PAPER, [("train.tokens", 900 * PAPER.train.batch)])
    (key, _), *_ = fit.changes(short, needed, room(cache=0.8 * needed(short).cache / GB))
    assert key == "train.tokens"


def test_a_narrower_cache_comes_before_a_shorter_one():
    wide = applied(PAPER, [("harvest.dtype", "fp32")])
    assert fit.changes(wide, needed, room(cache=300)) == [("harvest.dtype", "bf16")]


def test_memory_is_had_from_the_batch_then_from_the_latents():
    less = (needed(LARGE_BATCH).memory - 0.2 * GB) / GB
    assert fit.changes(LARGE_BATCH, needed, room(cache=1000, memory=less)) == [("train.batch", 32768)]
    [(key, value)] = fit.changes(PAPER, needed, room(cache=1000, memory=(needed(PAPER).memory - 0.2 * GB) / GB))
    assert key == "sae.n" and PAPER.sae.n > value > 0.8 * PAPER.sae.n and value % 64 == 0


def test_two_shortages_get_two_changes():
    tight = room(cache=60, memory=(needed(LARGE_BATCH).memory - 0.2 * GB) / GB)
    assert [key for key, _ in fit.changes(LARGE_BATCH, needed, tight)] == ["train.tokens", "train.batch"]


def test_nothing_is_proposed_where_nothing_helps():
    assert fit.changes(PAPER, needed, room(cache=1000, memory=0.1)) is None
    assert fit.changes(PAPER, needed, room(cache=0.001)) is None


def test_an_unknown_memory_is_no_shortage():
    assert fit.shortages(needed(PAPER), fit.Room(None, None, 1000 * GB, 1000 * GB, True)) == []


def test_one_disk_holds_both_folders_two_disks_one_each():
    wanted = needed(PAPER)
    both = (wanted.cache + wanted.run_folder) / GB
    assert fit.shortages(wanted, room(cache=both)) == []
    assert [short.resource for short in fit.shortages(wanted, room(cache=both - 0.1))] == ["disk"]
    assert fit.shortages(wanted, room(cache=wanted.cache / GB, run=wanted.run_folder / GB)) == []
    assert [short.resource for short in fit.shortages(wanted, room(cache=1000, run=0.1))] == ["disk of the run folder"]


@pytest.mark.parametrize("seed", range(15))
def test_every_proposal_fits(seed):
    rng = np.random.default_rng(seed)
    n, k = int(rng.integers(256, 40_000)), int(rng.integers(1, 128))
    recipe = Recipe.load(
        {
            "harvest": {"dtype": str(rng.choice(["fp32", "bf16"])), "batch_tokens": int(2 ** rng.integers(10, 17))},
            "sae": {"n": n, "k": k, "architecture": str(rng.choice(["batchtopk", "relu"]))},
            "train": {"tokens": int(10 ** rng.uniform(6, 9)), "batch": int(rng.integers(256, 10_000))},
            "measure": {"tokens": int(10 ** rng.uniform(4, 7)), "keep_firings": bool(rng.integers(2))},
        }
    )
    place = room(
        memory=float(10 ** rng.uniform(0, 1.5)),
        cache=float(10 ** rng.uniform(0, 3)),
        run=float(10 ** rng.uniform(-1, 2)),
    )
    settings = fit.changes(recipe, needed, place)
    if settings is not None:
        assert fit.shortages(needed(applied(recipe, settings)), place) == []
        assert bool(settings) == bool(fit.shortages(needed(recipe), place))


def test_a_run_is_refused_before_its_harvest(tmp_path, monkeypatch):
    small = Recipe.load("demo")
    fit.refuse_what_cannot_fit(small, 384, tmp_path / "runs" / "a")
    with pytest.raises(UserError, match=r"disk: .* TB needed, .* available; set harvest.window_tokens=\d+ ") as caught:
        fit.refuse_what_cannot_fit(
            applied(small, [("harvest.tokens", 0), ("train.tokens", 10**12)]), 384, tmp_path / "runs" / "a"
        )
    assert "\n" not in str(caught.value)
    # where training reads cached tokens again, fewer of them are cached; windows would not keep them
    with pytest.raises(UserError, match=r"disk: .* available; set harvest.tokens=\d+ ") as caught:
        fit.refuse_what_cannot_fit(
            applied(small, [("harvest.tokens", 10**12), ("train.tokens", 10**13)]), 384, tmp_path / "runs" / "a"
        )
    assert "window" not in str(caught.value)
    with pytest.raises(UserError, match=r"memory: .* needed, .* available"):
        fit.refuse_what_cannot_fit(
            applied(small, [("sae.n", 10**9), ("measure.keep_firings", False)]), 384, tmp_path / "runs" / "a"
        )


def test_what_the_folders_hold_counts_as_free(tmp_path, monkeypatch):
    monkeypatch.setattr(fit, "free_disk", lambda folder: 1000)
    for name, count in (
        ("cache/train-00000.safetensors", 234),
        ("run/arms/solo-s0/primary/sae_weights.safetensors", 50_000),
    ):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_bytes(bytes(count))
    one = fit.disk_room(tmp_path / "run", tmp_path / "cache")
    assert (one.cache, one.run, one.shared) == (51_234, 51_000, True)
    # the folder of caches, of which the run's own may be any
    (tmp_path / "cache").rename(tmp_path / "9f8e")
    (tmp_path / "activations").mkdir()
    (tmp_path / "9f8e").rename(tmp_path / "activations" / "9f8e")
    assert fit.disk_room(tmp_path / "run", tmp_path / "activations").cache == 51_234
    (tmp_path / "activations" / "9f8e").rename(tmp_path / "cache")
    absent = fit.disk_room(tmp_path / "no run", tmp_path / "no cache")
    assert (absent.cache, absent.run) == (1000, 1000)
    monkeypatch.setattr(fit, "same_disk", lambda one, other: False)
    assert fit.disk_room(tmp_path / "run", tmp_path / "cache").cache == 1234


def test_a_run_whose_cache_is_there_is_not_refused_for_the_room_that_it_takes(tmp_path, monkeypatch):
    recipe = Recipe.load("demo", {"measure.keep_firings": False})
    shard = tmp_path / "runs/activations/9f8e/train-00000.safetensors"
    shard.parent.mkdir(parents=True)
    with open(shard, "wb") as handle:
        handle.truncate(needs(recipe, 384, model=0).cache)  # takes no room on the disk
    monkeypatch.setattr(fit, "free_disk", lambda folder: needs(recipe, 384, model=0).run_folder + 10**6)
    fit.refuse_what_cannot_fit(recipe, 384, tmp_path / "runs/a")
    shard.unlink()
    with pytest.raises(UserError, match="this run cannot fit; disk"):
        fit.refuse_what_cannot_fit(recipe, 384, tmp_path / "runs/a")


def test_sizes_in_words():
    assert [fit.size(count) for count in (0, 1500, 2.5e6, 3e9, 4.25e12)] == [
        "0 kB",
        "2 kB",
        "2.5 MB",
        "3 GB",
        "4.25 TB",
    ]
    assert [fit.setting(("x.y", value)) for value in (True, 3, "bf16")] == ["x.y=true", "x.y=3", "x.y=bf16"]
