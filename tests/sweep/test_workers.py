"""Several workers on one folder: killed ones, waiting ones, and what comes out, which must be what one undisturbed
worker gives.
"""

import json
import multiprocessing
import os
import signal
import time

import pytest
from tiny_sweeps import TINY, contents, without_machine, workers_of

from metasae.errors import Interrupted, UserError
from metasae.progress.stop import StopRequest
from metasae.sweep import launch, sweep
from metasae.sweep.folder import SweepFolder, locked
from metasae.sweep.plan import asked_plan, read_plan
from metasae.sweep.worker import Worker

pytestmark = pytest.mark.usefixtures("no_drawing")

# long enough to be killed in
LONG = TINY | {"train.tokens": 60_000, "train.checkpoint_every": 20}
GRID = ["train.lambda2=0.3,3.0"]


def planned(out, overrides=LONG, seeds=1):
    """A sweep that is planned and not begun."""
    changed = overrides | {"seeds": seeds}
    plan, folder = asked_plan("planted", out, changed, "cpu", GRID, None, None, None, False)
    launch.open_cells(folder, plan)
    return folder


def _work(path):
    with StopRequest().listening() as stop:
        Worker(SweepFolder(path), "cpu").work(stop)


def start(folder):
    """A worker in a process of its own. Forked, as a fresh one takes seconds to load torch."""
    process = multiprocessing.get_context("fork").Process(target=_work, args=(folder.path,), daemon=True)
    process.start()
    return process


def wait_for(what, seconds=60):
    deadline = time.time() + seconds
    while not (answer := what()):
        assert time.time() < deadline, "waited too long"
        time.sleep(0.002)
    return answer


def holds(folder, process):
    """The SAE in whose training a worker has come to a checkpoint, or None."""
    mine = [name for name, workers in workers_of(folder.path).items() if workers[-1].endswith(f"-{process.pid}")]
    checkpoint = "checkpoints/latest.safetensors"
    return next((name for name in mine if (folder.path / "saes" / name / checkpoint).exists()), None)


def test_two_workers_one_killed_twice_give_what_one_gives(tmp_path):
    whole = sweep("planted", GRID, seeds=1, out=tmp_path / "whole", overrides=LONG, show=False)
    folder = planned(tmp_path / "a")
    steady, doomed = start(folder), start(folder)
    taken_from = []
    wait_for(lambda: holds(folder, steady))
    # it keeps its lock while it is stopped, so that the others meet a slow worker too
    os.kill(steady.pid, signal.SIGSTOP)
    for _ in range(2):
        taken_from.append(wait_for(lambda worker=doomed: holds(folder, worker)))
        os.kill(doomed.pid, signal.SIGKILL)
        doomed.join()
        doomed = start(folder) if len(taken_from) < 2 else doomed
    os.kill(steady.pid, signal.SIGCONT)
    steady.join(60)
    assert steady.exitcode == 0
    result = launch.conclude(folder, read_plan(folder), show=False)
    assert without_machine(result) == without_machine(whole)
    assert contents(folder.path) == contents(tmp_path / "whole")
    taken = workers_of(folder.path)
    # what the killed ones held was gone on with by others; nothing else was begun twice
    assert (
        all(len(taken[name]) > 1 for name in taken_from)
        and sum(len(workers) > 1 for name, workers in taken.items() if name not in taken_from) == 0
    )
    assert len(result["cells"]) == 2 and [cell["trials"] for cell in result["cells"]] == [[0], [1]]


def test_a_worker_without_work_waits_for_the_others(tmp_path):
    folder = planned(tmp_path / "a")
    slow = start(folder)
    first = wait_for(lambda: holds(folder, slow))
    os.kill(slow.pid, signal.SIGSTOP)
    other = start(folder)
    wait_for(lambda: len(list(folder.path.glob("saes/*/measures.json"))) == 2)
    time.sleep(0.5)
    # nothing is left but the SAE that is held, solo, and control, whose measures are solo's
    assert first.startswith("solo") and other.is_alive()
    assert sorted(path.parent.name.split("-")[0] for path in folder.path.glob("saes/*/measures.json")) == [
        "joint",
        "joint",
    ]
    os.kill(slow.pid, signal.SIGCONT)
    for process in (slow, other):
        process.join(60)
        assert process.exitcode == 0
    assert all(cell.state == "done" for cell in folder.cells())
    control = next(folder.path.glob("saes/control-*/measures.json"))
    assert json.loads(control.read_text())["conditions"]["same_weights_as"] == "solo-s0"


def test_a_worker_that_is_asked_to_stop_saves_and_another_goes_on(tmp_path):
    folder = planned(tmp_path / "a", LONG | {"train.checkpoint_every": 1000})
    process = start(folder)
    wait_for(lambda: any(path.stat().st_size for path in folder.path.glob("saes/*/metrics.jsonl")))
    os.kill(process.pid, signal.SIGTERM)
    process.join(60)
    assert process.exitcode == 1
    assert list(folder.path.glob("saes/*/checkpoints/latest.safetensors"))
    _work(folder.path)
    assert all(cell.state == "done" for cell in folder.cells())
    assert sorted(len(workers) for workers in workers_of(folder.path).values()) == [1, 1, 1, 2]


def test_seeds_that_are_added_meanwhile_are_not_lost(tmp_path):
    folder = planned(tmp_path / "a", TINY)
    with StopRequest().listening() as stop:
        worker = Worker(folder, "cpu")
        worker.work(stop)
        planned(folder.path, TINY, seeds=2)
        # the worker's own plan is the older one
        assert worker.plan.base.seeds == (0,)
        worker._settle(folder.cells())
        assert [cell.state for cell in folder.cells()] == ["open", "open"]
        worker.work(stop)
    assert [(cell.state, cell.seeds) for cell in folder.cells()] == [("done", [0, 1])] * 2


def test_a_lock_is_held_by_one(tmp_path):
    with locked(tmp_path / "x") as one, locked(tmp_path / "x", wait=False) as other:
        assert one and not other
    with locked(tmp_path / "x", wait=False) as free:
        assert free


def test_ctrl_c_in_the_supervisor_stops_all_workers(tmp_path, monkeypatch):
    folder = planned(tmp_path / "a")
    processes = []

    class Forked:
        """What a started process offers, of a forked one."""

        def __init__(self):
            self.process = start(folder)
            processes.append(self.process)
            self.terminate, self.wait = self.process.terminate, self.process.join

        def poll(self):
            return self.process.exitcode

        returncode = property(poll)

    monkeypatch.setattr(launch, "_start", lambda *arguments: (Forked(), tmp_path / "log"))
    stop = StopRequest()
    stop.asked = True
    with pytest.raises(Interrupted, match="every worker saved its state"):
        launch._supervise(folder, read_plan(folder), ["cpu", "cpu"], launch.Progress(False), stop)
    assert len(processes) == 2 and not any(process.is_alive() for process in processes)


@pytest.mark.slow
def test_workers_are_started_and_their_last_words_told(tmp_path):
    result = sweep("planted", GRID, seeds=1, out=tmp_path / "a", overrides=TINY, workers=2, show=False)
    one = sweep("planted", GRID, seeds=1, out=tmp_path / "b", overrides=TINY, show=False)
    assert without_machine(result) == without_machine(one) and result["time"]["workers"] == 2
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    folder = planned(tmp_path / "c", TINY)
    plan = read_plan(folder)
    folder.plan.write_text("{")
    with pytest.raises(
        UserError, match=r"a worker ended with code 2: .*plan\.json is not valid JSON .*; its output is"
    ):
        launch._supervise(folder, plan, ["cpu"], launch.Progress(False), StopRequest())
