"""How many threads a fused model uses: limits and load as Linux tells them, in files of the tests' own."""

import os
import threading

import pytest
import torch

from upernet_zoo.models.fused import threads


@pytest.fixture
def system(tmp_path, monkeypatch):
    """Writes what the system says: `system(path, text)`. Sixteen cores, and torch has eight threads."""

    def write(path, text):
        path = tmp_path / path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    monkeypatch.setattr(threads, "_ROOT", tmp_path)
    monkeypatch.setattr(threads, "_BETWEEN", 0)
    monkeypatch.setattr(os, "cpu_count", lambda: 16)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(16)), raising=False)
    for name in threads._SETTINGS:
        monkeypatch.delenv(name, raising=False)
    threads.core_limit.cache_clear()
    before = torch.get_num_threads()
    torch.set_num_threads(8)
    yield write
    torch.set_num_threads(before)
    threads.core_limit.cache_clear()


LIMITS = {
    "none": ({}, 16),
    "version 2": ({"proc/self/cgroup": "0::/a/b\n", "sys/fs/cgroup/a/b/cpu.max": "250000 100000\n"}, 2.5),
    "version 2, of a group above": (
        {"proc/self/cgroup": "0::/a/b\n", "sys/fs/cgroup/a/b/cpu.max": "max 100000\n", "sys/fs/cgroup/a/cpu.max": "50000 100000\n"},
        0.5,
    ),
    "version 2, a container's own root": ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "300000 100000\n"}, 3),
    "version 2, no limit": ({"proc/self/cgroup": "0::/a\n", "sys/fs/cgroup/a/cpu.max": "max 100000\n"}, 16),
    "version 1": (
        {
            "proc/self/cgroup": "5:memory:/m\n4:cpu,cpuacct:/a\n",
            "sys/fs/cgroup/cpu,cpuacct/a/cpu.cfs_quota_us": "400000\n",
            "sys/fs/cgroup/cpu,cpuacct/a/cpu.cfs_period_us": "100000\n",
        },
        4,
    ),
    "version 1, a path of the host, and the container's root": (
        {
            "proc/self/cgroup": "4:cpu,cpuacct:/docker/0123\n",
            "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "150000\n",
            "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
        },
        1.5,
    ),
    "version 1, no limit": (
        {
            "proc/self/cgroup": "4:cpu:/\n",
            "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
            "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
        },
        16,
    ),
    "nothing that can be read": ({"proc/self/cgroup": "0\n\n:::\n", "sys/fs/cgroup/cpu.max": "many\n"}, 16),
}


@pytest.mark.parametrize("files, expected", LIMITS.values(), ids=LIMITS)
def test_limits_of_control_groups(files, expected, system):
    for path, text in files.items():
        system(path, text)
    assert threads.core_limit() == expected


def test_a_quota_below_the_number_of_threads_is_kept_to_and_the_number_given_back(system):
    system("proc/self/cgroup", "0::/\n")
    system("sys/fs/cgroup/cpu.max", "240000 100000\n")
    with threads.fewer_if_busy():
        assert torch.get_num_threads() == 2
        with threads.fewer_if_busy():
            assert torch.get_num_threads() == 2
    assert torch.get_num_threads() == 8
    with pytest.raises(KeyError), threads.fewer_if_busy():
        raise KeyError
    assert torch.get_num_threads() == 8


def test_affinity_counts(system, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {3, 5, 7}, raising=False)
    with threads.fewer_if_busy():
        assert torch.get_num_threads() == 3


def running(system, everything, own):
    system("proc/loadavg", f"3.00 2.00 1.00 {everything}/700 4711\n")
    for i in range(own + 2):
        system(f"proc/self/task/{i}/stat", f"{i} (a (strange) R name) {'R' if i < own else 'S'} 1 2 3\n")


@pytest.mark.parametrize(
    "everything, own, expected", [(1, 1, 8), (9, 1, 8), (10, 1, 7), (12, 5, 8), (15, 1, 2), (17, 1, 1), (90, 1, 1), (1, 3, 8)]
)
def test_what_other_programs_run_is_left_to_them(everything, own, expected, system):
    running(system, everything, own)
    with threads.fewer_if_busy():
        assert torch.get_num_threads() == expected
    assert torch.get_num_threads() == 8


def test_what_runs_for_a_moment_does_not_count(system, monkeypatch):
    running(system, 17, 1)
    monkeypatch.setattr(threads.time, "sleep", lambda seconds: running(system, 2, 1))
    with threads.fewer_if_busy():
        assert torch.get_num_threads() == 8


@pytest.mark.parametrize("name", threads._SETTINGS)
def test_what_the_user_has_settled_stays(name, system, monkeypatch):
    running(system, 17, 1)
    monkeypatch.setenv(name, "8")
    with threads.fewer_if_busy():
        assert torch.get_num_threads() == 8


def test_one_thread_stays_one_and_nobody_looks(system, monkeypatch):
    monkeypatch.setattr(threads, "free_cores", None)
    torch.set_num_threads(1)
    with threads.fewer_if_busy():
        assert torch.get_num_threads() == 1


def test_calls_in_two_threads_give_back_the_number_that_was_before_both(system):
    """The second begins while the first is inside, and ends after it."""
    running(system, 15, 1)
    first_inside, second_inside, first_over = threading.Event(), threading.Event(), threading.Event()
    found = []

    def second():
        first_inside.wait(120)
        with threads.fewer_if_busy():
            second_inside.set()
            first_over.wait(120)
            found.append(torch.get_num_threads())
        found.append(torch.get_num_threads())

    thread = threading.Thread(target=second)
    thread.start()
    with threads.fewer_if_busy():
        first_inside.set()
        assert second_inside.wait(120)
    first_over.set()
    thread.join(120)
    assert found == [2, 8]
    assert torch.get_num_threads() == 8


def test_a_system_that_tells_nothing(system, monkeypatch):
    monkeypatch.delattr(os, "sched_getaffinity")
    with threads.fewer_if_busy():
        assert torch.get_num_threads() == 8
