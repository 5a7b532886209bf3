"""Who is there, as the environment says; one process needs nothing."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from arms import values

from metasae.errors import UserError
from metasae.ranks import ranks as module
from metasae.ranks.ranks import ALONE, joined
from metasae.recipe.recipe import Recipe
from metasae.train.sharded.trainer import trainer_of
from metasae.train.trainer import Trainer
from spawned import environment, free_port, on_ranks, results, start


def test_without_torchrun_there_is_one_rank_and_no_process_group(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with joined() as ranks:
        assert ranks is ALONE and ranks.first and ranks.device("cuda") == "cuda"
        assert not torch.distributed.is_initialized()
        assert ranks.any(True) and ranks.objects(3) == [3] and ranks.from_first(3) == 3
        assert torch.equal(ranks.sum_(torch.ones(2)), torch.ones(2)) and ranks.numbers(2.0) == [2.0]
        assert type(trainer_of(Recipe.load(values()), "solo", 0, torch.zeros(16), "cpu", ranks)) is Trainer


def test_half_an_environment_is_one_clear_error(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(UserError, match="RANK is not"), joined():
        pass
    monkeypatch.setenv("WORLD_SIZE", "two")
    with pytest.raises(UserError, match="WORLD_SIZE must be a whole number"), joined():
        pass


@pytest.fixture
def pretended(monkeypatch):
    """Two ranks of which this is the second, with everything that would wait for the other left out; what was called,
    in order.
    """
    called = []
    for name, value in {"WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(module.dist, "rendezvous", lambda *_, **__: iter([(torch.distributed.HashStore(), 1, 2)]))
    monkeypatch.setattr(module.dist, "init_process_group", lambda backend, **_: called.append(backend))
    monkeypatch.setattr(module.dist, "destroy_process_group", lambda: called.append("destroyed"))
    monkeypatch.setattr(module.Ranks, "wait", lambda self: called.append("waited"))
    monkeypatch.setattr(torch.cuda, "set_device", lambda number: called.append(f"GPU {number}"))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    return called


def test_a_rank_that_fails_alone_does_not_wait_for_the_others_where_nccl_would(pretended):
    with joined("cuda") as ranks:
        assert ranks.device("cuda") == "cuda:1"
    assert pretended == ["GPU 1", "cpu:gloo,cuda:nccl", "waited", "destroyed"]
    pretended.clear()
    with pytest.raises(RuntimeError, match="out of memory"), joined("cuda"):
        raise RuntimeError("out of memory")
    assert pretended == ["GPU 1", "cpu:gloo,cuda:nccl"]
    pretended.clear()
    with pytest.raises(KeyboardInterrupt), joined():
        raise KeyboardInterrupt
    assert pretended == ["gloo", "destroyed"]


def test_ranks_without_a_gpu_each_are_refused(pretended, monkeypatch):
    with (
        pytest.raises(UserError, match="--device cuda:0 would put all ranks on one GPU; give --device cuda"),
        joined("cuda:0"),
    ):
        pass
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(UserError, match="rank 1 is process 2 of this machine, which has 1 GPUs"), joined("cuda"):
        pass
    assert not pretended


def spoken(ranks):
    rows = torch.arange(7).view(7, 1).float()
    spans = [range(0, 3), range(3, 6), range(6, 7)]
    own = rows[spans[ranks.rank].start : spans[ranks.rank].stop]
    first = ranks.gather_rows_to_first(own, spans)
    told = {
        "sum": ranks.sum_(torch.full((2, 3), float(ranks.rank))).tolist(),
        "rows": torch.equal(ranks.gather_rows(own, spans), rows),
        "first": first is None if ranks.rank else torch.equal(first, rows),
        "bf16": ranks.gather(torch.tensor([ranks.rank + 0.5]).bfloat16()).flatten().tolist(),
        "objects": ranks.objects("é" * ranks.rank),
        "from first": ranks.from_first(ranks.rank),
        "any": ranks.any(ranks.rank == 2),
    }
    try:
        ranks.same("fp32" if ranks.rank < 2 else "bf16", "the dtype", "set it")
    except UserError as error:
        told["differ"] = str(error)
    errors = []
    for changed in ({"meta": {"architecture": "relu"}}, {"sae": {"n": 4, "k": 2}}):
        try:
            trainer_of(Recipe.load(values(**changed)), "joint", 0, torch.zeros(16), "cpu", ranks)
        except UserError as error:
            errors.append(str(error))
    return told | {"errors": errors}


def test_what_is_said_arrives_and_what_is_not_supported_is_refused():
    for told in on_ranks(3, spoken):
        assert told["sum"] == [[3.0] * 3] * 2 and told["rows"] and told["first"] and told["any"]
        assert told["bf16"] == [0.5, 1.5, 2.5] and told["objects"] == ["", "é", "éé"] and told["from first"] == 0
        assert told["differ"].startswith("the ranks differ in the dtype: fp32 on rank 0, bf16 on rank 2")
        relu, few = told["errors"]
        assert "meta.architecture = 'relu'" in relu and "4 latents cannot be spread over 3 ranks" in few


def ended(ranks, how):
    ranks.wait()
    if ranks.rank == 1 and how == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if ranks.rank == 1 and how == "failed":
        raise UserError("the disk is full")
    if ranks.rank == 1 and how == "wrong":
        raise RuntimeError("no shape")
    ranks.wait()


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("how", "words"), [("killed", None), ("failed", "UserError: the disk is full"), ("wrong", "RuntimeError: no shape")]
)
def test_a_rank_that_ends_ends_the_job(how, words):
    first, second, third = results(start(3, ended, how), 90)
    assert second is None if words is None else second[1].startswith(words)
    for told in (first, third):
        assert told[1].startswith("UserError: another rank ended before the job was done"), told
        assert "start the same command again to continue from the last checkpoint" in told[1]


UNDER_TORCHRUN = """
import os, signal, sys
from metasae.errors import UserError
from metasae.ranks.ranks import joined
try:
    with joined() as ranks:
        ranks.wait()
        if ranks.rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        ranks.wait()
except UserError as error:
    print(error, file=sys.stderr)
    sys.exit(error.exit_code)
"""


@pytest.mark.timeout(300)
def test_torchrun_ends_a_job_of_which_a_rank_is_killed(tmp_path):
    (tmp_path / "job.py").write_text(UNDER_TORCHRUN)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run([*launcher, str(tmp_path / "job.py")], capture_output=True, text=True, timeout=240)
    assert done.returncode != 0 and "exitcode  : -9" in done.stderr


LEFT = """
import os, torch
from metasae.ranks.ranks import joined
with joined() as ranks:
    ranks.wait()
    import torch._dynamo  # as torch does by itself for much that it is asked for
names = [open(f"/proc/self/task/{number}/comm").read().strip() for number in os.listdir("/proc/self/task")]
print([name for name in names if "gloo" in name])
"""


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="the names of threads are told by Linux")
def test_no_thread_of_the_group_outlives_the_job():
    """One that did would meet the end of the interpreter, and abort the process after its work was done."""
    port = free_port()
    started = [
        subprocess.Popen(
            [sys.executable, "-c", LEFT], env=os.environ | environment(rank, 2, port), stdout=subprocess.PIPE, text=True
        )
        for rank in range(2)
    ]
    assert [process.communicate()[0].strip() for process in started] == ["[]", "[]"]
