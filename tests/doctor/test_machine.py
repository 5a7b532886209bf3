"""What the machine has, on made-up file systems."""

from types import SimpleNamespace

import psutil
import pytest

from metasae.doctor.machine import free_disk, machine, memory_of, peak_resident, resident, same_disk

GB = 1 << 30


@pytest.fixture
def root(tmp_path, monkeypatch):
    """root(**files) is a made-up root with these files, of a machine that has 16 GB, of which 10 are available."""
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(total=16 * GB, available=10 * GB))

    def make(**files):
        for path, text in files.items():
            file = tmp_path / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(str(text))
        return tmp_path

    return make


def cgroup2(path, limit, used, droppable=0):
    base = f"sys/fs/cgroup{path}"
    return {
        f"{base}/memory.max": limit,
        f"{base}/memory.current": used,
        f"{base}/memory.stat": f"anon 5\ninactive_file {droppable}\n",
    }


def test_without_a_limit_it_is_what_the_system_says(root):
    assert memory_of(root()) == (16 * GB, 10 * GB, False)


def test_a_limit_of_the_own_group(root):
    files = {"proc/self/cgroup": "0::/jobs/one\n", **cgroup2("/jobs/one", 4 * GB, 3 * GB, droppable=1 * GB)}
    assert memory_of(root(**files)) == (4 * GB, 2 * GB, True)


def test_the_tightest_of_nested_groups_counts(root):
    files = {
        "proc/self/cgroup": "0::/jobs/one\n",
        **cgroup2("/jobs/one", 8 * GB, 1 * GB),
        **cgroup2("/jobs", 9 * GB, 8 * GB),
    }
    assert memory_of(root(**files)) == (8 * GB, 1 * GB, True)


def test_inside_a_container_the_group_is_the_root_of_what_is_seen(root):
    files = {"proc/self/cgroup": "0::/docker/0123\n", **cgroup2("", 2 * GB, 1 * GB)}
    assert memory_of(root(**files)) == (2 * GB, 1 * GB, True)


def test_no_limit_in_either_version(root):
    first = {
        "proc/self/cgroup": "4:cpu,memory:/a\n0::/\n",
        "sys/fs/cgroup/memory/a/memory.limit_in_bytes": 9223372036854771712,
        "sys/fs/cgroup/memory/a/memory.usage_in_bytes": GB,
        "sys/fs/cgroup/memory.max": "max",
        "sys/fs/cgroup/memory.current": GB,
    }
    assert memory_of(root(**first)) == (16 * GB, 10 * GB, False)


def test_a_limit_of_the_first_version(root):
    files = {
        "proc/self/cgroup": "4:memory:/a\n",
        "sys/fs/cgroup/memory/a/memory.limit_in_bytes": 6 * GB,
        "sys/fs/cgroup/memory/a/memory.usage_in_bytes": 5 * GB,
        "sys/fs/cgroup/memory/a/memory.stat": f"total_inactive_file {2 * GB}\n",
    }
    assert memory_of(root(**files)) == (6 * GB, 3 * GB, True)


def test_a_group_that_is_over_its_limit_has_nothing_left(root):
    files = {"proc/self/cgroup": "0::/\n", **cgroup2("", 2 * GB, 3 * GB)}
    assert memory_of(root(**files))[1] == 0


def test_a_system_without_cgroups_still_has_memory(tmp_path):
    memory, available, limited = memory_of(tmp_path)
    assert memory >= available > 0 and not limited


def test_disk_of_a_folder_that_is_not_there_yet(tmp_path):
    assert free_disk(tmp_path / "a" / "b") == pytest.approx(free_disk(tmp_path), rel=0.05)
    assert same_disk(tmp_path / "a", tmp_path / "b" / "c")


def test_this_machine():
    here = machine()
    assert here["cores"] >= 1 and here["threads"] >= 1 and here["cpu"]
    assert 0 < here["available"] <= here["memory"]
    assert 0 < resident() <= peak_resident() * 1.01
    assert here["gpus"] == [] or here["gpus"][0]["free"] <= here["gpus"][0]["memory"]
