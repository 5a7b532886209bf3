"""One cache harvested by several ranks: the files of one process, byte for byte, also after a rank was killed."""

import os
import shutil
import signal

import pytest

from metasae.data.cache import activations, cache_writer, passes
from metasae.data.cache.activations import harvest_points
from metasae.data.model.host import Host
from metasae.progress.progress import Progress
from metasae.ranks.ranks import ALONE
from metasae.recipe import recipe
from spawned import on_ranks, results, start

POINTS = ("blocks.1.hook_resid_pre", "blocks.2.hook_resid_pre")
TEXT = recipe.Text(source="stories", context=16, calibration_share=0.2, evaluation_share=0.3)
SPEC = recipe.Harvest(dtype="bf16", batch_tokens=60, shard_tokens=700)
# more training tokens than there are, so that the last shard is cut
TOKENS = {"train": 10_000, "calibration": 100, "evaluation": 500}


class Said(Progress):
    def __init__(self):
        super().__init__(False)
        self.lines = []

    def say(self, line):
        self.lines.append(line)


def harvested(ranks, model, folder, stories, rank_batches=4, kill_at=None):
    """Harvests; returns what was said and how many batches this rank ran.

    kill_at: the batch before which the last rank is killed.
    """
    batches, run_batch = [], passes._run_batch

    def counted(*args):
        batches.append(args)
        if len(batches) == kill_at and ranks.rank == ranks.size - 1:
            os.kill(os.getpid(), signal.SIGKILL)
        run_batch(*args)

    progress, host = Said(), Host.load(recipe.Model(path=str(model), dtype="fp32"), POINTS[0])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(passes, "_run_batch", counted)
        patch.setattr(activations, "RANK_BATCHES", rank_batches)
        # a note after every turn, so that there is something to go on from
        patch.setattr(cache_writer, "SECONDS_BETWEEN_NOTES", 0.0)
        patch.setattr(os, "fsync", lambda _: None)
        # only the first has the text; the second time all is there
        for _ in range(2):
            documents = iter(stories if ranks.first else [])
            harvest_points(host, POINTS, TEXT, SPEC, lambda key: folder / key[:8], TOKENS, progress, documents, ranks)
    return progress.lines, len(batches)


def files(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.suffix != ".lock"
    }


@pytest.fixture(scope="module")
def model(build):
    return build("gpt2")


@pytest.fixture(scope="module")
def few(stories):
    return stories[:120]


@pytest.fixture(scope="module")
def alone(model, few, tmp_path_factory):
    """The files of one process, and the batches it ran."""
    folder = tmp_path_factory.mktemp("alone")
    batches = harvested(ALONE, model, folder, few)[1]
    written = files(folder)
    indices = [value for name, value in written.items() if name.endswith("index.json")]
    assert len(indices) == 2 and all(b'"exhausted": true' in index for index in indices)
    return written, batches


def test_ranks_fill_the_cache_of_one_process(model, few, alone, tmp_path):
    # so many batches for each rank that a turn takes several pools
    told = on_ranks(3, harvested, model, tmp_path, few, 20)
    assert files(tmp_path) == alone[0]
    counts = [count for _, count in told]
    assert sum(counts) == alone[1] and max(counts) - min(counts) <= alone[1] / 60 + 1


def test_a_killed_rank_ends_the_harvest_and_any_number_goes_on(model, few, alone, tmp_path):
    killed, again = tmp_path / "killed", tmp_path / "again"
    said = results(start(2, harvested, model, killed, few, 4, 20), 60)
    assert said[1] is None and said[0][0] == "failed" and said[0][1].startswith("UserError: another rank ended")
    shutil.copytree(killed, again)
    lines, count = harvested(ALONE, model, again, few)
    assert "continues after" in lines[0] and 0 < count < alone[1]
    told = on_ranks(3, harvested, model, killed, few)
    assert "continues after" in told[0][0][0] and sum(batches for _, batches in told) == count
    assert files(killed) == files(again) == alone[0]
