"""What this machine has: processor, memory, disk, GPUs. A container's memory limit (cgroups v1 and v2) is respected."""

import os
import platform
import re
import shutil
from pathlib import Path

import psutil

# A limit beyond this means no limit: cgroups v1 write "no limit" as a number near 2^63.
_ENDLESS = 1 << 60
# For a version of cgroups: its folder, the files with a group's limit and use, and the entry for memory that the kernel
# could drop.
_V1 = ("sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
_V2 = ("sys/fs/cgroup", "memory.max", "memory.current", "inactive_file")


def machine() -> dict:
    """This machine as it is now, as plain JSON. Imports torch.

    cores: that this process may use. threads: that torch uses. bf16: whether the processor has instructions for
    products of bf16 matrices. memory, available: bytes in all, and bytes that a new process could have now. limited:
    whether a container's limit set them. gpus: for every CUDA device its name, and the bytes of all and of free memory.
    """
    import torch

    from metasae.sae.gradients import matmul_dtype

    memory, available, limited = memory_of()
    rooms = [torch.cuda.mem_get_info(number) for number in range(torch.cuda.device_count())]
    return {
        "cpu": _cpu_name(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else psutil.cpu_count() or 1,
        "threads": torch.get_num_threads(),
        "bf16": matmul_dtype("auto", torch.device("cpu")) == torch.bfloat16,
        "memory": memory,
        "available": available,
        "limited": limited,
        "gpus": [
            {"name": torch.cuda.get_device_name(i), "memory": total, "free": free}
            for i, (free, total) in enumerate(rooms)
        ],
        "torch": torch.__version__,
    }


def memory_of(root: Path = Path("/")) -> tuple[int, int, bool]:
    """(bytes of memory, bytes available, whether a container's limit set them). root: where the file system with
    cgroups is.
    """
    system = psutil.virtual_memory()
    limits = [(limit, max(limit - used, 0)) for limit, used in _limits(root) if limit < system.total]
    if not limits:
        return system.total, system.available, False
    return min(limit for limit, _ in limits), min(system.available, *(left for _, left in limits)), True


def free_disk(folder: Path) -> int:
    """Free bytes on the disk where `folder` is or would be created."""
    return shutil.disk_usage(_existing(folder)).free


def same_disk(one: Path, other: Path) -> bool:
    """Whether two folders, which need not exist yet, are on the same disk."""
    return _existing(one).stat().st_dev == _existing(other).stat().st_dev


def resident() -> int:
    """Bytes of memory this process has now."""
    return psutil.Process().memory_info().rss


def peak_resident() -> int:
    """The most bytes of memory this process ever had, with mapped files; outside Linux the bytes it has now."""
    # getrusage gives a child at least what its parent had when it was started
    peak = re.search(r"VmHWM:\s+(\d+) kB", _text(Path("/proc/self/status")))
    return int(peak[1]) * 1024 if peak else resident()


def _existing(folder: Path) -> Path:
    folder = Path(folder).expanduser().absolute()
    return next(place for place in (folder, *folder.parents) if place.exists())


def _limits(root: Path) -> list[tuple[int, int]]:
    """(limit, bytes in use) of every memory cgroup this process is in; files the kernel could drop are not in use."""
    limits = []
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        base, limit_file, used_file, droppable = _V1 if controllers else _V2
        # inside a container the path may be the host's, and the container's own group is the root that it sees
        inner = Path(path.lstrip("/"))
        for group in (root / base / inner, *(root / base / parent for parent in inner.parents)):
            limit, used = _text(group / limit_file).strip(), _text(group / used_file).strip()
            if limit.isdigit() and int(limit) < _ENDLESS and used.isdigit():
                dropped = re.search(rf"^{droppable} (\d+)", _text(group / "memory.stat"), re.M)
                limits.append((int(limit), max(int(used) - (int(dropped[1]) if dropped else 0), 0)))
    return limits


def _cpu_name() -> str:
    name = re.search(r"^model name\s*:\s*(.+)", _text(Path("/proc/cpuinfo")), re.M)
    return name[1].strip() if name else platform.processor() or platform.machine()


def _text(path: Path) -> str:
    """A file's text, empty if it cannot be read."""
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""
