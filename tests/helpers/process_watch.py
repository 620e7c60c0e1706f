"""Memory, open files and descendants of a process, observed from outside."""

import os
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np


def descendants(pid: int) -> list[int]:
    """Return the process ids of all descendants."""
    children = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        children += [int(child) for child in task.read_text().split()]
    return children + [p for child in children for p in descendants(child)]


def resident(pid: int) -> int:
    """Return the resident bytes, shared pages divided by the number of sharers.

    Mapped files (libraries) do not count: other programs that share them start and end.
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
        """Take one sample, or none if a process ends meanwhile."""
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
        """Number of samples in the first quarter, while the run starts."""
        return len(self.seconds) // 4

    def hours(self) -> float:
        """Return the hours from the end of the first quarter to the last sample."""
        return (self.seconds[-1] - self.seconds[self.quarter]) / 3600

    def slope(self) -> float:
        """Return the growth of memory after the first quarter, in MB an hour."""
        hours = np.array(self.seconds[self.quarter :]) / 3600
        megabytes = np.array(self.memory[self.quarter :]) / 1e6
        return float(np.polyfit(hours, megabytes, 1)[0])

    def fewest_files(self) -> tuple[int, int]:
        """Return the fewest open files in the second and in the last quarter.

        The first quarter opens logs and starts workers. Batches in transit between
        processes are open files too, but only leaked files stay open.
        """
        early = self.files[self.quarter : 2 * self.quarter + 1]
        return min(early), min(self.files[-self.quarter - 1 :])
