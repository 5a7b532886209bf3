import subprocess
import sys
import threading
import time

import pytest

from metasae import UserError
from metasae.locks import HARVEST_LOCK, alone_on, harvesting_into
from metasae.progress.progress import SILENT

pytest.importorskip("fcntl")

HOLD = """
import fcntl, sys, time
file = open(sys.argv[1], "a")
fcntl.flock(file, fcntl.LOCK_EX)
with open(sys.argv[1] + ".holder", "w") as holder:
    holder.write("process 7 on mars")
print("held", flush=True)
time.sleep(60)
"""


class Lines:
    def __init__(self):
        self.lines = []

    def say(self, line):
        self.lines.append(line)


def test_a_second_one_says_so_and_waits(tmp_path):
    progress, order = Lines(), []

    def second():
        with harvesting_into(tmp_path, progress):
            order.append("second")

    with harvesting_into(tmp_path, SILENT):
        thread = threading.Thread(target=second)
        thread.start()
        while not progress.lines:
            time.sleep(0.01)
        order.append("first")
    thread.join(60)
    assert order == ["first", "second"] and len(progress.lines) == 1
    assert "process " in progress.lines[0] and f"is harvesting into {tmp_path}; waiting for it" in progress.lines[0]


def test_a_process_that_was_killed_holds_nothing(tmp_path):
    progress = Lines()
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path / HARVEST_LOCK)], stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout.readline() == "held\n"
    threading.Timer(0.3, holder.kill).start()
    with harvesting_into(tmp_path, progress):
        assert holder.wait(60) == -9
    assert progress.lines == [f"process 7 on mars is harvesting into {tmp_path}; waiting for it"]
    with harvesting_into(tmp_path, progress):
        assert len(progress.lines) == 1


def test_an_error_inside_lets_go(tmp_path):
    for _ in range(2):
        with pytest.raises(ZeroDivisionError), harvesting_into(tmp_path, SILENT):
            raise ZeroDivisionError


def test_a_disk_without_locks_is_said(tmp_path, monkeypatch):
    import fcntl

    def refuse(*_):
        raise OSError(37, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    progress = Lines()
    with harvesting_into(tmp_path, progress):
        pass
    assert "cannot be locked (No locks available)" in progress.lines[0]


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"), harvesting_into(tmp_path / "file" / "folder", SILENT):
        pass


def test_nothing_is_left_of_a_holder(tmp_path):
    with alone_on(tmp_path), harvesting_into(tmp_path, SILENT):
        assert len(list(tmp_path.glob("*.holder"))) == 2
        with (
            pytest.raises(UserError, match=f"process .* is working on {tmp_path}; wait until it ends"),
            alone_on(tmp_path),
        ):
            pass
    with alone_on(tmp_path):
        pass
    assert not list(tmp_path.glob("*.holder"))
