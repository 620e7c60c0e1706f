"""Watches a process from outside: memory, open files, processes."""

import os
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np


def descendants(pid: int) -> list[int]:
    """Processes that a process has started, and theirs."""
    children = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        children += [int(child) for child in task.read_text().split()]
    return children + [p for child in children for p in descendants(child)]


def resident(pid: int) -> int:
    """Bytes of memory in use, shared pages divided by those who share them.

    Without files (libraries): other programs share them, and come and go.
    """
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    kinds = ("Pss_Anon:", "Pss_Shmem:")
    parts = [line.split()[1] for line in lines if line.startswith(kinds)]
    if not parts:
        raise ValueError(f"process {pid} shows no memory")
    return sum(map(int, parts)) * 1024


@dataclass
class Watch:
    """Samples of a process and its descendants.

    Args:
        pid: The process.
    """

    pid: int
    seconds: list[float] = field(default_factory=list)
    memory: list[int] = field(default_factory=list)
    files: list[int] = field(default_factory=list)
    processes: list[int] = field(default_factory=list)

    def sample(self) -> None:
        """Looks once; where a process ends meanwhile, there is no sample."""
        try:
            family = [self.pid, *descendants(self.pid)]
            memory = sum(resident(pid) for pid in family)
            files = len(os.listdir(f"/proc/{self.pid}/fd"))
        except (OSError, ValueError):
            return
        self.seconds.append(time.monotonic())
        self.memory.append(memory)
        self.files.append(files)
        self.processes.append(len(family))

    @property
    def quarter(self) -> int:
        """Number of samples in the first quarter, which loads, fills caches, starts."""
        return len(self.seconds) // 4

    def hours(self) -> float:
        """From the first quarter's end to the last sample."""
        return (self.seconds[-1] - self.seconds[self.quarter]) / 3600

    def slope(self) -> float:
        """Growth of memory after the first quarter, in MB an hour, by least squares."""
        hours = np.array(self.seconds[self.quarter :]) / 3600
        megabytes = np.array(self.memory[self.quarter :]) / 1e6
        return float(np.polyfit(hours, megabytes, 1)[0])

    def fewest_files(self) -> tuple[int, int]:
        """Open files in the second and in the last quarter, at the least.

        The first opens logs and starts workers. A batch on its way between processes is
        some files, too; what leaks stays open.
        """
        early = self.files[self.quarter : 2 * self.quarter + 1]
        return min(early), min(self.files[-self.quarter - 1 :])
