"""What this machine has: processor, memory, disk, GPUs. Limits set on a container (cgroups v1 and v2) are respected."""

import os
import platform
import re
import shutil
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

# A limit beyond this is none: cgroups v1 write "no limit" as a number near 2^63.
_ENDLESS = 1 << 60


@dataclass(frozen=True)
class Gpu:
    """A CUDA device. Bytes; `free` counts what other processes have left."""

    name: str
    memory: int
    free: int


@dataclass(frozen=True)
class Machine:
    """cores: those this process may use. threads: torch's. bf16: whether the processor multiplies bf16 matrices itself.

    memory, available: bytes, of all and of what a new process could have now. limited: whether a container's limit set them.
    """

    cpu: str
    cores: int
    threads: int
    bf16: bool
    memory: int
    available: int
    limited: bool
    gpus: tuple[Gpu, ...]
    torch: str

    def as_dict(self) -> dict:
        return asdict(self)


def machine() -> Machine:
    """This machine as it is now. Imports torch."""
    import torch

    from metasae.sae.gradients import matmul_dtype

    memory, available, limited = memory_of()
    return Machine(
        cpu=_cpu_name(),
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        threads=torch.get_num_threads(),
        bf16=matmul_dtype("auto", torch.device("cpu")) == torch.bfloat16,
        memory=memory,
        available=available,
        limited=limited,
        gpus=_gpus(),
        torch=torch.__version__,
    )


def memory_of(root: Path = Path("/")) -> tuple[int, int, bool]:
    """(bytes of memory, bytes available, whether a container's limit set them). Where the system does not say, available is all.

    root: where `proc` and `sys` are looked for.
    """
    table = _table(root / "proc/meminfo")
    memory = table.get("MemTotal", 0) * 1024 or _installed()
    available = table["MemAvailable"] * 1024 if "MemAvailable" in table else memory
    rooms = [(limit, max(limit - used, 0)) for limit, used in _limits(root) if limit < memory]
    if not rooms:
        return memory, available, False
    return min(limit for limit, _ in rooms), min(available, *(left for _, left in rooms)), True


def free_disk(folder: Path) -> int:
    """Free bytes where `folder` is, or would be made."""
    return shutil.disk_usage(_existing(folder)).free


def same_disk(one: Path, other: Path) -> bool:
    """Whether two folders, which need not exist yet, take from the same free space."""
    return _existing(one).stat().st_dev == _existing(other).stat().st_dev


def resident() -> int:
    """Bytes of memory this process holds now; where the system does not say, the most it ever held."""
    table = _table(Path("/proc/self/status"))
    return table["VmRSS"] * 1024 if "VmRSS" in table else peak_resident()


def peak_resident() -> int:
    """The most bytes of memory this process ever held, files that are mapped in included; 0 where the system does not say."""
    status = Path("/proc/self/status")
    if status.is_file() and (peak := re.search(r"VmHWM:\s+(\d+) kB", status.read_text())):
        # getrusage gives a child at least what its parent held when it was started
        return int(peak[1]) * 1024
    try:
        import resource
    except ImportError:
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _existing(folder: Path) -> Path:
    folder = Path(folder).expanduser().absolute()
    return next(place for place in (folder, *folder.parents) if place.exists())


def _limits(root: Path) -> list[tuple[int, int]]:
    """(limit, bytes in use) of every memory cgroup this process is in, innermost first; files the kernel could drop are not in use."""
    found = []
    for line in _lines(root / "proc/self/cgroup"):
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            base, names = root / "sys/fs/cgroup", ("memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            base, names = (
                root / "sys/fs/cgroup/memory",
                ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
            )
        else:
            continue
        # inside a container the path may be that of the host, and the container's own group is the root of what it sees
        inner = Path(path.lstrip("/"))
        for group in (base / inner, *(base / parent for parent in inner.parents)):
            limit, used = _number(group / names[0]), _number(group / names[1])
            if limit is not None and used is not None and limit < _ENDLESS:
                found.append((limit, max(used - _table(group / "memory.stat").get(names[2], 0), 0)))
    return found


def _cpu_name() -> str:
    names = [line.partition(":")[2].strip() for line in _lines(Path("/proc/cpuinfo")) if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _gpus() -> tuple[Gpu, ...]:
    import torch

    if not torch.cuda.is_available():
        return ()
    rooms = [torch.cuda.mem_get_info(number) for number in range(torch.cuda.device_count())]
    return tuple(Gpu(torch.cuda.get_device_name(number), total, free) for number, (free, total) in enumerate(rooms))


def _installed() -> int:
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):
        return 0


def _table(path: Path) -> dict[str, int]:
    """Lines of a name and a number, as the kernel writes them; other lines are left out."""
    out = {}
    for line in _lines(path):
        name, *rest = line.replace(":", " ").split()
        if rest and rest[0].isdigit():
            out[name] = int(rest[0])
    return out


def _number(path: Path) -> int | None:
    lines = _lines(path)
    return int(lines[0]) if lines and lines[0].strip().isdigit() else None


def _lines(path: Path) -> list[str]:
    try:
        return [line for line in path.read_text(errors="replace").splitlines() if line.strip()]
    except OSError:
        return []
