"""CPU time and memory of processes, read from the kernel's own account of them."""

import os
from collections.abc import Mapping, Sequence

import psutil


class Meter:
    """The processes of one chain under their names; a name may stand for several."""

    def __init__(self, processes: Mapping[str, Sequence[int]]) -> None:
        self._processes = {
            name: [psutil.Process(pid) for pid in pids] for name, pids in processes.items()
        }

    def cpu_s(self) -> dict[str, float]:
        """User and system time spent so far."""
        return {
            name: sum(sum(process.cpu_times()[:2]) for process in group)
            for name, group in self._processes.items()
        }

    def rss(self) -> dict[str, int]:
        """Resident bytes now."""
        return {
            name: sum(process.memory_info().rss for process in group)
            for name, group in self._processes.items()
        }


def machine_cpu_s() -> float:
    """CPU time that all processes together have spent, and the kernel for them."""
    times = psutil.cpu_times()
    return sum(times) - times.idle - getattr(times, "iowait", 0.0) - getattr(times, "guest", 0.0)


def spent(before: Mapping[str, float], after: Mapping[str, float]) -> dict[str, float]:
    """CPU seconds between two samples."""
    return {name: after[name] - before[name] for name in before}


def pin(pid: int, cores: Sequence[int]) -> None:
    """Keep a process and its threads on these cores; nothing when there is no choice."""
    if not cores:
        return
    for thread in psutil.Process(pid).threads():
        os.sched_setaffinity(thread.id, cores)
