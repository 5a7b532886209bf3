"""Runs a function on several ranks: processes that find each other as torchrun's do, over gloo."""

import multiprocessing
import os
import socket
import sys
import traceback
from contextlib import closing

PRELOADED = [
    "torch", "torch.distributed.checkpoint", "torch.distributed.tensor", "transformers.models.gpt2.modeling_gpt2",
    "metasae.data.model.host", "metasae.train.sharded.checkpoint", "metasae.data.cache.stream",
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
