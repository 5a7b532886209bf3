"""Lanes: threads of one process that each run torch on a single core.

On a processor, torch divides every product among all cores and waits for the slowest. For small products this costs
more than it saves, and if another program uses a core, every product waits for it. Two pieces of work side by side,
each on one core, do not wait for each other. The result of a piece does not depend on the number of lanes, as each
piece is computed on one core.
"""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from functools import lru_cache
from typing import TypeVar

import torch
from threadpoolctl import ThreadpoolController

Piece = TypeVar("Piece")
Result = TypeVar("Result")


# A product of this many multiplications takes one core about 10 ms. Below that, waiting for a second core costs more
# than it saves.
SMALL_PRODUCT = 1e9


def is_small(multiplications: float) -> bool:
    """Whether matrix products of this many multiplications are faster on one core than on all."""
    return multiplications <= SMALL_PRODUCT


def side_by_side(work: Callable[[Piece], Result], pieces: Iterable[Piece]) -> list[Result]:
    """[work(piece)] for every piece, in order, computed in as many lanes as torch may use threads.

    work: must not change what another piece reads. The first error is raised when the running pieces are done; no
    further piece is begun. Within a lane of another call there is one thread, so the pieces run one after another.
    """
    pieces = list(pieces)
    lanes = min(torch.get_num_threads(), len(pieces))
    with on_one_core():
        if lanes < 2:
            return [work(piece) for piece in pieces]
        # a new thread starts with gradients enabled, whatever is set in this thread
        gradients = torch.is_grad_enabled()
        with ThreadPoolExecutor(lanes, "lane", torch.set_grad_enabled, (gradients,)) as pool:
            try:
                return list(pool.map(work, pieces))
            finally:
                pool.shutdown(wait=False, cancel_futures=True)


def on_one_core() -> AbstractContextManager[None]:
    """During the block torch and numpy use a single core, in this thread and in threads started in it."""
    return on_cores(1)


@contextmanager
def on_cores(count: int) -> Iterator[None]:
    """During the block torch and numpy use so many cores, in this thread and in threads started in it."""
    threads = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        # numpy's products use threads of their own, which torch does not control
        with _pools().limit(limits=count, user_api="blas"):
            yield
    finally:
        torch.set_num_threads(threads)


@lru_cache(maxsize=1)
def _pools() -> ThreadpoolController:
    """The thread pools of the libraries in this process, searched for once."""
    return ThreadpoolController()
