"""Runs a function on several ranks: processes that find each other as torchrun's do, over gloo. Runs a program of its
own in a process that has torch loaded (`Program`).
"""

import multiprocessing
import os
import runpy
import signal
import socket
import sys
import tempfile
import traceback
from contextlib import closing
from pathlib import Path
from subprocess import TimeoutExpired
from types import SimpleNamespace

PRELOADED = [
    "torch", "torch.distributed.checkpoint", "torch.distributed.tensor", "transformers.models.gpt2.modeling_gpt2",
    "metasae.data.model.host", "metasae.train.sharded.checkpoint", "metasae.data.cache.stream",
    # what a run of the main job imports when it comes to it
    "metasae.cli", "metasae.jobs.run", "metasae.jobs.conclude", "metasae.explore.store.build",
    "metasae.data.text.text", "metasae.measures.suite", "metasae.compare.across",
    "transformers.models.auto.modeling_auto", "transformers.models.auto.tokenization_auto", "huggingface_hub",
]  # fmt: skip


def _context():
    # a server that has torch loaded and forks: a process starts in milliseconds
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    return context


def environment(rank: int, size: int, port: int) -> dict[str, str]:
    numbers = {"RANK": rank, "WORLD_SIZE": size, "LOCAL_RANK": rank, "MASTER_PORT": port}
    return {
        "MASTER_ADDR": "127.0.0.1",
        "OMP_NUM_THREADS": "1",
        **{name: str(number) for name, number in numbers.items()},
    }


def free_port() -> int:
    with closing(socket.create_server(("127.0.0.1", 0))) as server:
        return server.getsockname()[1]


def start(size: int, function, *args, errors=os.devnull, joins=False):
    """[(process, pipe)] of each rank; function(ranks, *args) runs on each, its result or error comes through the pipe.

    errors: the file that takes what the ranks say on stderr. joins: the function joins the others by itself, and is
    called without ranks.
    """
    context, port, started = _context(), free_port(), []
    for rank in range(size):
        ours, theirs = context.Pipe(duplex=False)
        process = context.Process(
            target=_run, args=(theirs, environment(rank, size, port), str(errors), function, args, joins), daemon=True
        )
        process.start()
        theirs.close()
        started.append((process, ours))
    return started


def results(started, timeout: float = 300.0) -> list:
    """What each rank returned: ("done", value), ("failed", error's type and text), or None for one that said
    nothing.
    """
    out = []
    for process, pipe in started:
        try:
            out.append(pipe.recv() if pipe.poll(timeout) else None)
        except EOFError:
            out.append(None)
        process.join(timeout)
        if process.is_alive():
            process.kill()
    return out


def on_ranks(size: int, function, *args, joins=False) -> list:
    """function(ranks, *args) on `size` ranks -> what each returned. joins: as `start` takes it."""
    outcomes = results(start(size, function, *args, joins=joins))
    for rank, outcome in enumerate(outcomes):
        assert outcome is not None and outcome[0] == "done", (
            f"rank {rank} of {size}: {outcome[1] if outcome else 'no answer'}"
        )
    return [outcome[1] for outcome in outcomes]


def _run(pipe, environment_, errors, function, args, joins) -> None:
    os.environ.update(environment_)
    sys.stderr = open(errors, "a", buffering=1)  # noqa: SIM115  (the process ends with it)
    import torch

    torch.set_num_threads(1)
    from metasae.ranks.ranks import joined

    try:
        if joins:
            value = function(*args)
        else:
            with joined() as ranks:
                value = function(ranks, *args)
        pipe.send(("done", value))
    except BaseException as error:
        pipe.send(("failed", f"{type(error).__name__}: {error}\n{traceback.format_exc()}"))


class Program:
    """A Python program in a process of its own, forked from the server that has torch loaded: it begins in
    milliseconds, where a new interpreter takes seconds. Its interface is that of `subprocess.Popen`.

    stdin is empty, and what it prints can be read when it has ended. For programs that tests start and stop, not for
    what a test says of an interpreter's start: modules are imported already, so PYTHONPATH and the like change nothing.
    """

    stdin = stdout = stderr = None

    def __init__(self, words, env=None, cwd=None):
        """words: what stands behind `python` on a command line: -c CODE, -m MODULE or FILE, and arguments."""
        self.folder = tempfile.TemporaryDirectory(prefix="program-")
        self.files = [Path(self.folder.name, name) for name in ("stdout", "stderr")]
        context = _context()
        ours, theirs = context.Pipe(duplex=False)
        words, env, cwd = [str(word) for word in words], dict(env or os.environ), str(cwd or Path.cwd())
        self.process = context.Process(target=_run_program, args=(theirs, words, env, cwd, self.files), daemon=True)
        self.process.start()
        theirs.close()
        # before that a signal to its group would be one to ours
        ours.recv()
        self.pid = self.process.pid

    @property
    def returncode(self):
        return self.process.exitcode

    def poll(self):
        return self.process.exitcode

    def wait(self, timeout=None):
        self.process.join(timeout)
        if self.returncode is None:
            raise TimeoutExpired("a program", timeout)
        return self.returncode

    def communicate(self, timeout=None):
        """(stdout, stderr) as text, when it has ended."""
        self.wait(timeout)
        return tuple(file.read_text() for file in self.files)

    def send_signal(self, number):
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self):
        self.send_signal(signal.SIGKILL)

    def terminate(self):
        self.send_signal(signal.SIGTERM)


def program(words, env=None, cwd=None, timeout=300):
    """Runs a `Program` to its end, as `subprocess.run` does: returncode, stdout and stderr."""
    started = Program(words, env, cwd)
    try:
        stdout, stderr = started.communicate(timeout)
    finally:
        started.kill()
    return SimpleNamespace(returncode=started.returncode, stdout=stdout, stderr=stderr)


def _run_program(ready, words, environment_, folder, files) -> None:
    os.setpgid(0, 0)
    ready.send(True)
    os.environ.clear()
    os.environ.update(environment_)
    os.chdir(folder)
    for number, file in zip((1, 2), files, strict=True):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    # the server may have been started where another stream stood
    sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", buffering=1, closefd=False)  # noqa: SIM115
    import torch

    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    kind, rest = words[0], words[1:]
    try:
        if kind == "-c":
            sys.argv = ["-c", *rest[1:]]
            exec(compile(rest[0], "<string>", "exec"), {"__name__": "__main__"})
        elif kind == "-m":
            sys.argv = rest
            runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
        else:
            sys.argv = words
            sys.path.insert(0, str(Path(kind).parent))
            runpy.run_path(kind, run_name="__main__")
    finally:
        sys.stdout.flush()
