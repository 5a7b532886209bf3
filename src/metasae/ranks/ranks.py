"""The processes of a job and what they say to each other, every byte counted.

torchrun starts the processes and tells each through RANK, WORLD_SIZE and LOCAL_RANK who it is. Without these there is one
process, `ALONE`, which sends nothing and needs no process group.

Bytes are those that a rank sends in a ring, the least that W ranks can do: an all-reduce of S bytes takes 2 (W - 1) / W * S,
an all-gather to S bytes in all (W - 1) / W * S, a broadcast or a gather to one rank at most S.
"""

import os
import pickle
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from metasae.errors import UserError
from metasae.ranks.shards import shard

# The same function; newer releases of torch have it under another name.
_all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
# A rank may wait for hours while another harvests. One that ended is noticed by the watch, not by a timeout.
_PATIENCE = timedelta(days=30)


class Ranks:
    """rank: which of `size` processes this is. sent: bytes sent by this rank so far, by the purpose that the caller named."""

    def __init__(self, rank: int = 0, size: int = 1, local_rank: int = 0):
        self.rank, self.size, self.local_rank = rank, size, local_rank
        self.sent: Counter[str] = Counter()

    @property
    def first(self) -> bool:
        """Whether this is the rank that writes and talks."""
        return self.rank == 0

    def device(self, wanted: str) -> str:
        """The device of this rank: 'cuda' is the GPU of its local number, where there are several ranks."""
        return f"cuda:{self.local_rank}" if wanted == "cuda" and self.size > 1 else wanted

    def sum_(self, part: Tensor, purpose: str) -> Tensor:
        """The sum over ranks, in place, equal to the bit on all of them."""
        if self.size > 1:
            assert part.is_contiguous(), "an all-reduce needs a contiguous tensor"
            dist.all_reduce(part)
            self._count(purpose, 2 * (self.size - 1) * part.nbytes / self.size)
        return part

    def smallest(self, number: float, purpose: str) -> float:
        """The smallest of a number per rank."""
        return min(self.numbers(number, purpose))

    def numbers(self, number: float, purpose: str) -> list[float]:
        """A number of every rank."""
        if self.size == 1:
            return [number]
        return self.gather(torch.tensor([number], dtype=torch.float64), purpose)[:, 0].tolist()

    def any(self, flag: bool, purpose: str) -> bool:
        """Whether any rank says so."""
        return flag if self.size == 1 else bool(self.sum_(torch.tensor([int(flag)], dtype=torch.int32), purpose))

    def agreed(self, flag: bool) -> bool:
        """What the first rank says, on all of them."""
        return flag if self.size == 1 else bool(self.numbers(float(flag), "stage")[0])

    def gather(self, part: Tensor, purpose: str) -> Tensor:
        """[...] on every rank, of one shape -> [W, ...], in the order of ranks."""
        if self.size == 1:
            return part[None]
        # as bytes, since not every backend moves every type
        raw = part.contiguous().view(-1).view(torch.uint8)
        out = torch.empty(self.size * raw.numel(), dtype=torch.uint8, device=part.device)
        _all_gather(out, raw)
        self._count(purpose, (self.size - 1) * raw.numel())
        return out.view(part.dtype).view(self.size, *part.shape)

    def gather_rows(self, part: Tensor, spans: Sequence[range], purpose: str) -> Tensor:
        """Rows [len(spans[rank]), ...] of each rank -> all rows in the order of ranks. Shorter parts are filled up to the longest."""
        if self.size == 1:
            return part
        longest = max(len(span) for span in spans)
        found = self.gather(_filled(part, longest), purpose)
        if all(len(span) == longest for span in spans):
            return found.view(-1, *part.shape[1:])
        return torch.cat([found[rank, : len(span)] for rank, span in enumerate(spans)])

    def gather_rows_to_first(self, part: Tensor, spans: Sequence[range], purpose: str) -> Tensor | None:
        """As `gather_rows`, on the first rank alone; None on the others."""
        if self.size == 1:
            return part
        own = _filled(part, max(len(span) for span in spans)).contiguous()
        parts = [torch.empty_like(own) for _ in spans] if self.first else None
        dist.gather(own, parts, dst=0)
        self._count(purpose, 0 if self.first else own.nbytes)
        return torch.cat([found[: len(span)] for found, span in zip(parts, spans, strict=True)]) if self.first else None

    def same(self, value: str, what: str, advice: str) -> None:
        """Raises UserError unless every rank says the same."""
        if self.size == 1:
            return
        said = self.texts(value)
        if len(set(said)) > 1:
            other = next(rank for rank, each in enumerate(said) if each != said[0])
            raise UserError(f"the ranks differ in {what}: {said[0]} on rank 0, {said[other]} on rank {other}; {advice}")

    def texts(self, value: str) -> list[str]:
        """A text of every rank."""
        return [raw.decode() for raw in self._raw(value.encode(), "texts")]

    def objects(self, value: Any, purpose: str) -> list[Any]:
        """An object of every rank. It is pickled on its way between the processes of one job, and nowhere else."""
        return [value] if self.size == 1 else [pickle.loads(raw) for raw in self._raw(pickle.dumps(value), purpose)]

    def from_first(self, value: Any, purpose: str) -> Any:
        """The first rank's object, on all of them; what the others give is not looked at. Pickled on its way, as in `objects`."""
        if self.size == 1:
            return value
        raw = bytearray(pickle.dumps(value)) if self.first else bytearray()
        length = self.broadcast_(torch.tensor([len(raw)]), purpose)
        data = torch.frombuffer(raw, dtype=torch.uint8) if self.first else torch.empty(int(length), dtype=torch.uint8)
        self.broadcast_(data, purpose)
        return value if self.first else pickle.loads(data.numpy())

    def broadcast_(self, tensor: Tensor, purpose: str) -> Tensor:
        """The first rank's numbers, in place; of one shape and type on all."""
        if self.size > 1:
            dist.broadcast(tensor, src=0)
            self._count(purpose, tensor.nbytes if self.rank < self.size - 1 else 0)
        return tensor

    def wait(self) -> None:
        """Until every rank is here."""
        self.any(False, "waiting")

    def _raw(self, own: bytes, purpose: str) -> list[bytes]:
        """Bytes of every rank, of any length."""
        if self.size == 1:
            return [own]
        lengths = [int(length) for length in self.numbers(len(own), purpose)]
        filled = _filled(torch.frombuffer(bytearray(own or b"\0"), dtype=torch.uint8), max(1, *lengths))
        return [
            row[:length].numpy().tobytes() for row, length in zip(self.gather(filled, purpose), lengths, strict=True)
        ]

    def _count(self, purpose: str, n_bytes: float) -> None:
        self.sent[purpose] += round(n_bytes)


ALONE = Ranks()


def size() -> int:
    """How many processes this job has, as the environment says. Needs no process group."""
    return _number("WORLD_SIZE", 1)


@contextmanager
def joined(device: str = "cpu") -> Iterator[Ranks]:
    """Joins the other processes of the job for as long as the block lasts; yields `ALONE` where there are none.

    device: 'cpu' or 'cuda'. While joined, a rank that ends without leaving the block ends all of them within seconds.
    Raises UserError when the environment is not whole, for one GPU by its number, for fewer GPUs than ranks, and in place of what a
    collective raises once a rank is lost.
    """
    world = size()
    if world == 1:
        yield ALONE
        return
    # Its functions keep whatever is the default group when they are first imported. Imported later, somewhere in torch, they would keep
    # this one and its threads past the end of the program, which then aborts now and then.

    from metasae.train.sharded.watchdog import watched

    ranks = Ranks(_number("RANK"), world, _number("LOCAL_RANK", 0))
    if device.startswith("cuda"):
        _take_gpu(device, ranks)
    store, rank, world = next(iter(dist.rendezvous("env://", ranks.rank, world, timeout=timedelta(minutes=10))))
    with watched(store, rank, world):
        backend = "cpu:gloo,cuda:nccl" if device.startswith("cuda") else "gloo"
        dist.init_process_group(
            backend, store=dist.PrefixStore("metasae", store), rank=rank, world_size=world, timeout=_PATIENCE
        )
        try:
            yield ranks
            # nobody leaves while another still needs to be answered
            ranks.wait()
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
            f"--device {device} would put all ranks on one GPU; give --device cuda, and each takes the GPU of its local number"
        )
    count = torch.cuda.device_count()
    if ranks.local_rank >= count:
        raise UserError(
            f"rank {ranks.rank} is process {ranks.local_rank + 1} of this machine, which has {count} GPUs; start no more than these here"
        )
    torch.cuda.set_device(ranks.local_rank)


def spans_of(n: int, ranks: Ranks) -> list[range]:
    """Which of n things each rank holds."""
    return [shard(n, ranks.size, rank) for rank in range(ranks.size)]


def _filled(part: Tensor, length: int) -> Tensor:
    """part [r, ...] -> [length, ...], zeros at the end."""
    if len(part) == length:
        return part
    out = part.new_zeros(length, *part.shape[1:])
    out[: len(part)] = part
    return out


def _number(name: str, otherwise: int | None = None) -> int:
    text = os.environ.get(name, otherwise)
    if text is None:
        raise UserError(
            f"WORLD_SIZE is set but {name} is not; start several processes with torchrun --nproc-per-node W -m metasae ..."
        )
    try:
        return int(text)
    except ValueError:
        raise UserError(f"{name} must be a whole number, not '{text}'") from None
