"""The processes of a job, what they send to each other, and how the work on one SAE or one text is shared by them.

torchrun starts the processes and tells each through RANK, WORLD_SIZE and LOCAL_RANK who it is. Without these there is
one process, `ALONE`, which sends nothing and needs no process group.

Of n things each rank has a stretch of ceil(n / W), as torch.chunk and DTensor cut them (`span_of`). Other work is
shared in three ways, and every one of them gives the bits of one process:

- tokens: a rank takes a stretch of whole batches, so it meets the very blocks that one process would meet
  (`stretch_of`);
- tiles of pairs are dealt out in turn and come back in order, so sums over them are taken in the order of one process
  (`RankPool`);
- measures that are neither are dealt out whole (`deal`).
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

# The same function; newer releases of torch have it under another name.
_all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
# How long the ranks wait for each other to start, and in a message: a rank may wait for hours while another harvests.
_ARRIVAL, _PATIENCE = timedelta(minutes=10), timedelta(hours=24)


class Ranks:
    """rank: which of `size` processes this is. local_rank: its number on its machine."""

    def __init__(self, rank: int = 0, size: int = 1, local_rank: int = 0):
        self.rank, self.size, self.local_rank = rank, size, local_rank

    @property
    def first(self) -> bool:
        """Whether this is the rank that writes files and prints."""
        return self.rank == 0

    def device(self, wanted: str) -> str:
        """The device of this rank: 'cuda' is the GPU of its local number, where there are several ranks."""
        return f"cuda:{self.local_rank}" if wanted == "cuda" and self.size > 1 else wanted

    def sum_(self, part: Tensor) -> Tensor:
        """The sum over ranks, in place, equal to the bit on all of them."""
        if self.size > 1:
            assert part.is_contiguous(), "an all-reduce needs a contiguous tensor"
            dist.all_reduce(part)
        return part

    def numbers(self, number: float) -> list[float]:
        """A number of every rank."""
        return self.gather(torch.tensor([number], dtype=torch.float64))[:, 0].tolist()

    def any(self, flag: bool) -> bool:
        """Whether any rank says so."""
        return flag if self.size == 1 else bool(self.sum_(torch.tensor([int(flag)], dtype=torch.int32)))

    def agreed(self, flag: bool) -> bool:
        """What the first rank says, on all of them."""
        return flag if self.size == 1 else bool(self.numbers(float(flag))[0])

    def gather(self, part: Tensor) -> Tensor:
        """[...] on every rank, of one shape -> [W, ...], in the order of ranks."""
        if self.size == 1:
            return part[None]
        # as bytes, since not every backend moves every type
        raw = part.contiguous().view(-1).view(torch.uint8)
        out = torch.empty(self.size * raw.numel(), dtype=torch.uint8, device=part.device)
        _all_gather(out, raw)
        return out.view(part.dtype).view(self.size, *part.shape)

    def gather_rows(self, part: Tensor, spans: Sequence[range]) -> Tensor:
        """Rows [len(spans[rank]), ...] of each rank -> all rows in the order of ranks."""
        if self.size == 1:
            return part
        # shorter parts are filled up to the longest
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
        """Raises UserError unless every rank says the same."""
        values = self.objects(value)
        rank = next((rank for rank, other in enumerate(values) if other != values[0]), None)
        if rank is not None:
            raise UserError(
                f"the ranks differ in {what}: {values[0]} on rank 0, {values[rank]} on rank {rank}; {advice}"
            )

    def objects(self, value: Any) -> list[Any]:
        """An object of every rank. It is pickled on its way between the processes of one job, and nowhere else."""
        values = [value] * self.size
        if self.size > 1:
            dist.all_gather_object(values, value)
        return values

    def from_first(self, value: Any) -> Any:
        """The first rank's object, on all of them; what the others give is ignored. Pickled on its way, as in
        `objects`.
        """
        values = [value]
        if self.size > 1:
            dist.broadcast_object_list(values, src=0)
        return values[0]

    def broadcast_(self, tensor: Tensor) -> Tensor:
        """The first rank's numbers, in place; of one shape and type on all."""
        if self.size > 1:
            dist.broadcast(tensor, src=0)
        return tensor

    def wait(self) -> None:
        """Until every rank is here."""
        self.any(False)


ALONE = Ranks()


def size() -> int:
    """How many processes this job has, as the environment says. Needs no process group."""
    return _number("WORLD_SIZE", 1)


@contextmanager
def joined(device: str = "cpu") -> Iterator[Ranks]:
    """Joins the other processes of the job for as long as the block lasts; yields `ALONE` where there are none.

    device: 'cpu' or 'cuda'. Raises UserError when a variable of the environment is missing or wrong, for one GPU by its
    number, for fewer GPUs than ranks, and in place of what a message raises because another rank ended.
    """
    world = size()
    if world == 1:
        yield ALONE
        return
    # Its functions keep the process group that is the default when they are first imported. Imported later, somewhere
    # in torch, they would keep this one and its threads past the end of the program, which then aborts now and then.
    import torch.distributed.nn.functional  # noqa: F401

    ranks = Ranks(_number("RANK"), world, _number("LOCAL_RANK", 0))
    if device.startswith("cuda"):
        _take_gpu(device, ranks)
    try:
        with _process_group("cpu:gloo,cuda:nccl" if device.startswith("cuda") else "gloo", ranks):
            yield ranks
            # nobody leaves while another still needs to be answered
            ranks.wait()
    except RuntimeError as error:
        # a message between ranks raises these when another rank has ended
        if not isinstance(error, dist.DistError) and "gloo" not in str(error):
            raise
        raise UserError(
            "another rank ended before the job was done (killed, out of memory, or by an error that it printed itself);"
            f" start the same command again to go on from the last checkpoint ({str(error).strip().splitlines()[0]})"
        ) from error


@contextmanager
def _process_group(backend: str, ranks: Ranks) -> Iterator[None]:
    """torch's default process group. It ends with the block, but for NCCL's after an error."""
    store, rank, world = next(iter(dist.rendezvous("env://", ranks.rank, ranks.size, timeout=_ARRIVAL)))
    store = dist.PrefixStore("metasae", store)
    dist.init_process_group(backend, store=store, rank=rank, world_size=world, timeout=_PATIENCE)
    try:
        yield
    except BaseException:
        # NCCL's own end waits for all ranks: one that failed alone would wait there for ever, and the others for it
        if backend == "gloo":
            dist.destroy_process_group()
        raise
    dist.destroy_process_group()


def _take_gpu(device: str, ranks: Ranks) -> None:
    """The GPU of this rank's local number."""
    if device != "cuda":
        raise UserError(
            f"--device {device} would put all ranks on one GPU; "
            "give --device cuda, and each takes the GPU of its local number"
        )
    count = torch.cuda.device_count()
    if ranks.local_rank >= count:
        raise UserError(
            f"rank {ranks.rank} is process {ranks.local_rank + 1} of this machine, which has {count} GPUs; "
            "start no more than these here"
        )
    torch.cuda.set_device(ranks.local_rank)


def span_of(n: int, size: int, rank: int) -> range:
    """Which of n things one rank has. The last stretches are shorter, where n does not divide, and may be empty."""
    step = -(-n // size)
    return range(min(n, rank * step), min(n, (rank + 1) * step))


def spans_of(n: int, ranks: Ranks) -> list[range]:
    """Which of n things each rank has."""
    return [span_of(n, ranks.size, rank) for rank in range(ranks.size)]


def own_latents(n: int, size: int, rank: int) -> range:
    """The latents of one rank. Raises UserError where some rank would have none."""
    if not len(span_of(n, size, size - 1)):
        raise UserError(
            f"{n} latents cannot be spread over {size} ranks in stretches of {-(-n // size)}; use fewer ranks"
        )
    return span_of(n, size, rank)


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


class RankPool(ThreadPoolExecutor):
    """An executor whose `map` works each item out on one rank, in `threads` threads, and gives every rank all results,
    in order. All ranks call it with the same items.
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
    """part [r, ...] -> [length, ...], zeros at the end."""
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
