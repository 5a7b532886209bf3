"""How the work on one SAE or one text is shared by all ranks.

Three ways, and every one of them gives the bits of one process:

- tokens: a rank takes a stretch of whole batches, so it meets the very blocks that one process would meet
  (`stretch_of`);
- tiles of pairs are dealt out in turn and come back in order, so sums over them are taken in the order of one process
  (`RankPool`);
- measures that are neither are dealt out whole (`deal`).
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from metasae.ranks.ranks import Ranks

Start = TypeVar("Start")
Part = TypeVar("Part")


class RankPool:
    """In the place of an executor: `map` works each item out on one rank, in `threads` threads, and gives every rank
    all results, in order. All ranks call it with the same items.
    """

    def __init__(self, ranks: Ranks, threads: int = 1):
        self.ranks = ranks
        self._threads = ThreadPoolExecutor(threads)

    def map(self, of: Callable[[Start], Part], items: Sequence[Start]) -> Iterator[Part]:
        rank, size = self.ranks.rank, self.ranks.size
        own = self._threads.map(of, items[rank::size])
        for first in range(0, len(items), size):
            here = len(items[first : first + size])
            part = next(own) if rank < here else None
            yield from self.ranks.objects(part)[:here]

    def __enter__(self) -> "RankPool":
        return self

    def __exit__(self, *_) -> None:
        self._threads.shutdown(cancel_futures=True)


def stretch_of(n_tokens: int, batch: int, ranks: Ranks) -> tuple[int, int]:
    """(start, stop) of this rank's tokens: whole batches, shared out as evenly as they go."""
    batches = -(-n_tokens // batch)
    first, last = (batches * edge // ranks.size for edge in (ranks.rank, ranks.rank + 1))
    return min(first * batch, n_tokens), min(last * batch, n_tokens)


def deals(names: Sequence[str], ranks: Ranks) -> list[str]:
    """Which of the named works are this rank's: they are dealt out in turn."""
    return list(names[ranks.rank :: ranks.size])


def deal(works: Mapping[str, Callable[[], Any]], ranks: Ranks) -> dict[str, Any]:
    """Each work's result, on all ranks, worked out on one of them (`deals`). All ranks call it with the same names."""
    results = ranks.objects({name: works[name]() for name in deals(list(works), ranks)})
    return {name: results[number % ranks.size][name] for number, name in enumerate(works)}
