"""The processes (ranks) of a job, their messages, and how they share the work on one SAE or one text.

torchrun starts the processes and sets RANK, WORLD_SIZE and LOCAL_RANK for each. Without these there is one process,
`ALONE`, which sends no messages and needs no process group.

Of n things each of W ranks has a contiguous stretch of ceil(n / W), as in torch.chunk and DTensor (`span_of`). Other
work is shared in three ways, and each gives exactly the result of one process:

- tokens: a rank takes a stretch of whole batches, so it has exactly the blocks that one process would have
(`stretch_of`);
- tiles of pairs are dealt out in turn and return in order, so sums over them have the order of one process
(`RankPool`);
- other measures are dealt out whole (`deal`).
"""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from metasae.errors import UserError

# The same function under two names; newer releases of torch have the first.
_all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
# How long ranks wait for each other to start, and for a message: a rank may wait for hours while another harvests.
_ARRIVAL, _PATIENCE = timedelta(minutes=10), timedelta(hours=24)


class Ranks:
    """One of `size` processes. rank: its number, from 0. local_rank: its number on its machine."""

    def __init__(self, rank: int = 0, size: int = 1, local_rank: int = 0):
        self.rank, self.size, self.local_rank = rank, size, local_rank

    @property
    def first(self) -> bool:
        """Whether this is the rank that writes files and prints."""
        return self.rank == 0

    def device(self, wanted: str) -> str:
        """The device of this rank: with several ranks, 'cuda' is the GPU of its local number."""
        return f"cuda:{self.local_rank}" if wanted == "cuda" and self.size > 1 else wanted

    def sum_(self, part: Tensor) -> Tensor:
        """The sum over ranks, in place; exactly equal on all of them."""
        if self.size > 1:
            assert part.is_contiguous(), "an all-reduce needs a contiguous tensor"
            dist.all_reduce(part)
        return part

    def numbers(self, number: float) -> list[float]:
        """The number of every rank, in their order."""
        return self.gather(torch.tensor([number], dtype=torch.float64))[:, 0].tolist()

    def any(self, flag: bool) -> bool:
        """Whether the flag is true on any rank."""
        return flag if self.size == 1 else bool(self.sum_(torch.tensor([int(flag)], dtype=torch.int32)))

    def agreed(self, flag: bool) -> bool:
        """The first rank's flag, on all ranks."""
        return flag if self.size == 1 else bool(self.numbers(float(flag))[0])

    def gather(self, part: Tensor) -> Tensor:
        """Gathers tensors of one shape [...] from all W ranks: [W, ...] in the order of ranks, on every rank."""
        if self.size == 1:
            return part[None]
        # as bytes, as not every backend sends every type
        raw = part.contiguous().view(-1).view(torch.uint8)
        out = torch.empty(self.size * raw.numel(), dtype=torch.uint8, device=part.device)
        _all_gather(out, raw)
        return out.view(part.dtype).view(self.size, *part.shape)

    def gather_rows(self, part: Tensor, spans: Sequence[range]) -> Tensor:
        """Gathers rows [len(spans[rank]), ...] of each rank: all rows in the order of ranks, on every rank."""
        if self.size == 1:
            return part
        # shorter parts are padded to the longest
        longest = max(len(span) for span in spans)
        parts = self.gather(_filled(part, longest))
        if all(len(span) == longest for span in spans):
            return parts.view(-1, *part.shape[1:])
        return torch.cat([parts[rank, : len(span)] for rank, span in enumerate(spans)])

    def gather_rows_to_first(self, part: Tensor, spans: Sequence[range]) -> Tensor | None:
        """As `gather_rows`, on the first rank alone; None on the others."""
        if self.size == 1:
            return part
        own = _filled(part, max(len(span) for span in spans)).contiguous()
        parts = [torch.empty_like(own) for _ in spans] if self.first else None
        dist.gather(own, parts, dst=0)
        return torch.cat([rows[: len(span)] for rows, span in zip(parts, spans, strict=True)]) if self.first else None

    def same(self, value: str, what: str, advice: str) -> None:
        """Raises UserError unless every rank has the same value."""
        values = self.objects(value)
        rank = next((rank for rank, other in enumerate(values) if other != values[0]), None)
        if rank is not None:
            raise UserError(
                f"the ranks differ in {what}: {values[0]} on rank 0, {values[rank]} on rank {rank}; {advice}"
            )

    def objects(self, value: Any) -> list[Any]:
        """The objects of all ranks, in their order. They are pickled to be sent between the processes of one job;
        nothing else is pickled.
        """
        values = [value] * self.size
        if self.size > 1:
            dist.all_gather_object(values, value)
        return values

    def from_first(self, value: Any) -> Any:
        """The first rank's object, on all ranks; the others' objects are ignored. It is pickled to be sent, as in
        `objects`.
        """
        values = [value]
        if self.size > 1:
            dist.broadcast_object_list(values, src=0)
        return values[0]

    def broadcast_(self, tensor: Tensor) -> Tensor:
        """Copies the first rank's tensor to all ranks, in place; shape and type must be equal."""
        if self.size > 1:
            dist.broadcast(tensor, src=0)
        return tensor

    def wait(self) -> None:
        """Waits until every rank has called it."""
        self.any(False)


ALONE = Ranks()


def size() -> int:
    """The number of processes of this job, from the environment. Needs no process group."""
    return _number("WORLD_SIZE", 1)


@contextmanager
def joined(device: str = "cpu") -> Iterator[Ranks]:
    """Joins the other processes of the job during the block; yields this process's `Ranks`, `ALONE` if there are no
    others.

    device: 'cpu' or 'cuda'. Raises UserError if a variable of the environment is missing or wrong, for a single
    numbered GPU, for fewer GPUs than ranks, and if another rank ended during a message.
    """
    world = size()
    if world == 1:
        yield ALONE
        return
    # When this module is first imported, its functions keep the default process group of that moment. If torch imported
    # it later, they would keep this job's group and its threads beyond the end of the program, which then sometimes
    # aborts.
    import torch.distributed.nn.functional  # noqa: F401

    ranks = Ranks(_number("RANK"), world, _number("LOCAL_RANK", 0))
    if device.startswith("cuda"):
        _take_gpu(device, ranks)
    try:
        with _process_group("cpu:gloo,cuda:nccl" if device.startswith("cuda") else "gloo", ranks):
            yield ranks
            # no rank leaves while another still waits for a message
            ranks.wait()
    except RuntimeError as error:
        # messages between ranks raise these errors if another rank has ended
        if not isinstance(error, dist.DistError) and "gloo" not in str(error):
            raise
        raise UserError(
            "another rank ended before the job was done (killed, out of memory, or by an error that it printed itself);"
            f" start the same command again to continue from the last checkpoint ({str(error).strip().splitlines()[0]})"
        ) from error


@contextmanager
def _process_group(backend: str, ranks: Ranks) -> Iterator[None]:
    """torch's default process group during the block. After an error, a group with NCCL is not ended."""
    store, rank, world = next(iter(dist.rendezvous("env://", ranks.rank, ranks.size, timeout=_ARRIVAL)))
    store = dist.PrefixStore("metasae", store)
    dist.init_process_group(backend, store=store, rank=rank, world_size=world, timeout=_PATIENCE)
    try:
        yield
    except BaseException:
        # ending NCCL waits for all ranks: a rank that failed alone would wait for ever, and the others for it
        if backend == "gloo":
            dist.destroy_process_group()
        raise
    dist.destroy_process_group()


def _take_gpu(device: str, ranks: Ranks) -> None:
    """Makes the GPU of this rank's local number the current one. Raises UserError for another device, or if there is no
    such GPU.
    """
    if device != "cuda":
        raise UserError(
            f"--device {device} would put all ranks on one GPU; "
            "give --device cuda, so that each takes the GPU of its local number"
        )
    count = torch.cuda.device_count()
    if ranks.local_rank >= count:
        raise UserError(
            f"rank {ranks.rank} is process {ranks.local_rank + 1} of this machine, which has {count} GPUs; "
            "start at most one process per GPU"
        )
    torch.cuda.set_device(ranks.local_rank)


def span_of(n: int, size: int, rank: int) -> range:
    """The range of n things that one rank has. If n is not divisible, the last ranges are shorter and may be empty."""
    step = -(-n // size)
    return range(min(n, rank * step), min(n, (rank + 1) * step))


def spans_of(n: int, ranks: Ranks) -> list[range]:
    """The ranges of n things that the ranks have."""
    return [span_of(n, ranks.size, rank) for rank in range(ranks.size)]


def own_latents(n: int, size: int, rank: int) -> range:
    """The range of latents of one rank. Raises UserError if some rank would have none."""
    if not len(span_of(n, size, size - 1)):
        raise UserError(f"{n} latents cannot be spread over {size} ranks in parts of {-(-n // size)}; use fewer ranks")
    return span_of(n, size, rank)


def stretch_of(n_tokens: int, batch: int, ranks: Ranks) -> tuple[int, int]:
    """(start, stop) of this rank's tokens: whole batches, divided as evenly as possible."""
    batches = -(-n_tokens // batch)
    first, last = (batches * edge // ranks.size for edge in (ranks.rank, ranks.rank + 1))
    return min(first * batch, n_tokens), min(last * batch, n_tokens)


def deals(names: Sequence[str], ranks: Ranks) -> list[str]:
    """The names of the tasks of this rank: tasks are dealt out in turn."""
    return list(names[ranks.rank :: ranks.size])


def deal(works: Mapping[str, Callable[[], Any]], ranks: Ranks) -> dict[str, Any]:
    """{name: result} of each task, on all ranks; each is computed on one rank (`deals`). All ranks call it with the
    same names.
    """
    results = ranks.objects({name: works[name]() for name in deals(list(works), ranks)})
    return {name: results[number % ranks.size][name] for number, name in enumerate(works)}


class RankPool(ThreadPoolExecutor):
    """An executor whose `map` computes each item on one rank, in `threads` threads, and returns all results in order on
    every rank. All ranks call it with the same items.
    """

    def __init__(self, ranks: Ranks, threads: int = 1):
        super().__init__(threads)
        self.ranks = ranks

    def map(self, of: Callable[[Any], Any], items: Sequence[Any]) -> Iterator[Any]:
        rank, size = self.ranks.rank, self.ranks.size
        own = super().map(of, items[rank::size])
        for first in range(0, len(items), size):
            here = len(items[first : first + size])
            part = next(own) if rank < here else None
            yield from self.ranks.objects(part)[:here]


def _filled(part: Tensor, length: int) -> Tensor:
    """Pads part [r, ...] with zeros at the end to [length, ...]."""
    if len(part) == length:
        return part
    return torch.nn.functional.pad(part, (0, 0) * (part.dim() - 1) + (0, length - len(part)))


def _number(name: str, otherwise: int | None = None) -> int:
    text = os.environ.get(name, otherwise)
    if text is None:
        raise UserError(
            f"WORLD_SIZE is set but {name} is not; "
            "start several processes with torchrun --nproc-per-node W -m metasae ..."
        )
    try:
        return int(text)
    except ValueError:
        raise UserError(f"{name} must be a whole number, not '{text}'") from None
