"""What this machine has: processor, memory, disk, GPUs. A container's memory limit (cgroups v1 and v2) counts."""

import os
import platform
import re
import shutil
from pathlib import Path

import psutil

# A limit beyond this is none: cgroups v1 write "no limit" as a number near 2^63.
_ENDLESS = 1 << 60
# Of a version of cgroups: its folder, the files with a group's limit and use, and the entry of what the kernel could
# drop.
_V1 = ("sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
_V2 = ("sys/fs/cgroup", "memory.max", "memory.current", "inactive_file")


def machine() -> dict:
    """This machine as it is now, as plain JSON. Imports torch.

    cores: those this process may use. threads: torch's. bf16: whether the processor multiplies bf16 matrices itself.
    memory, available: bytes, of all and of what a new process could have now. limited: whether a container's limit set
    them. gpus: name, and the bytes of all memory and of what is free, of every CUDA device.
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
    """(bytes of memory, bytes available, whether a container's limit set them). root: where cgroups are looked for."""
    system = psutil.virtual_memory()
    limits = [(limit, max(limit - used, 0)) for limit, used in _limits(root) if limit < system.total]
    if not limits:
        return system.total, system.available, False
    return min(limit for limit, _ in limits), min(system.available, *(left for _, left in limits)), True


def free_disk(folder: Path) -> int:
    """Free bytes where `folder` is, or would be made."""
    return shutil.disk_usage(_existing(folder)).free


def same_disk(one: Path, other: Path) -> bool:
    """Whether two folders, which need not exist yet, take from the same free space."""
    return _existing(one).stat().st_dev == _existing(other).stat().st_dev


def resident() -> int:
    """Bytes of memory this process has now."""
    return psutil.Process().memory_info().rss


def peak_resident() -> int:
    """The most bytes of memory this process ever had, files that are mapped in included; outside Linux those it has
    now.
    """
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
        # inside a container the path may be that of the host, and the container's own group is the root of what it sees
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
    """A file's text, empty where it cannot be read."""
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""
