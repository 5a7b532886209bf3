"""Lanes: threads of one process that each run torch on a single core.

On a processor, torch deals every product out to all cores and waits for the slowest. Small products are done before
that pays, and where another program takes a core, every product waits for it. Two pieces of work side by side, each on
one core, have nothing to wait for. The bits of a piece do not depend on how many lanes there are, as each is worked out
on one core.
"""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import lru_cache
from typing import TypeVar

import torch
from threadpoolctl import ThreadpoolController

Piece = TypeVar("Piece")
Result = TypeVar("Result")


# A product of so many multiplications takes a core some 10 ms. Below that, waiting for a second core costs more than it
# saves.
SMALL_PRODUCT = 1e9


def is_small(multiplications: float) -> bool:
    """Whether matrix products of at most so many multiplications are better made on one core than on all."""
    return multiplications <= SMALL_PRODUCT


def side_by_side(work: Callable[[Piece], Result], pieces: Iterable[Piece]) -> list[Result]:
    """work(piece) of every piece, in their order, worked out in as many lanes as torch may use threads here.

    work: must not change what another piece reads. The first error is raised once the pieces under way are done; no
    further one is begun. In a lane of another call there is one thread, so the pieces come one after the other.
    """
    pieces = list(pieces)
    lanes = min(torch.get_num_threads(), len(pieces))
    with on_one_core():
        if lanes < 2:
            return [work(piece) for piece in pieces]
        # a new thread begins with gradients on, whatever is set in this one
        gradients = torch.is_grad_enabled()
        with ThreadPoolExecutor(lanes, "lane", torch.set_grad_enabled, (gradients,)) as pool:
            try:
                return list(pool.map(work, pieces))
            finally:
                pool.shutdown(wait=False, cancel_futures=True)


@contextmanager
def on_one_core() -> Iterator[None]:
    """Torch and numpy use a single core inside, in this thread and in those that are started here."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        # numpy's products have threads of their own, of which torch knows nothing
        with _pools().limit(limits=1, user_api="blas"):
            yield
    finally:
        torch.set_num_threads(threads)


@lru_cache(maxsize=1)
def _pools() -> ThreadpoolController:
    """The thread pools of the libraries in this process, looked for once."""
    return ThreadpoolController()
