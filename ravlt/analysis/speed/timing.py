"""Time and memory of a call, and the machine they were measured on."""

import os
import platform
import statistics
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import torch
from torch import nn

from ravlt.env.cuda import find_driver
from ravlt.env.versions import is_installed

_SQUARE = 2048


def measure_times(
    step: Callable[[], object], device: torch.device, warmup: int, repeat: int
) -> list[float]:
    """Times a call, in seconds, after some that are not counted.

    Args:
        step: What to time.
        device: Where it computes; waited for before the clock is read.
        warmup: Calls before the first that counts.
        repeat: Calls that count.
    """
    times = []
    for i in range(warmup + repeat):
        _wait(device)
        start = time.perf_counter()
        step()
        _wait(device)
        if i >= warmup:
            times.append(time.perf_counter() - start)
    return times


def matmul_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Measures the rate of a square matrix product, in multiply-adds a second."""
    a = torch.ones(_SQUARE, _SQUARE, device=device, dtype=dtype)
    times = measure_times(lambda: a @ a, device, warmup=2, repeat=5)
    return _SQUARE**3 / statistics.median(times)


def peak_memory(step: Callable[[], object], device: torch.device) -> int | None:
    """Runs a call and gives the bytes that were in use at most beyond those before.

    On a CPU these are pages of the process, so call it in a fresh one, before anything
    of the kind has run; None where the system (other than Linux) cannot say.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        step()
        _wait(device)
        return torch.cuda.max_memory_allocated(device) - before
    if not os.path.exists("/proc/self/clear_refs"):
        return None
    # 5 sets the high-water mark of the resident set back to its present size.
    Path("/proc/self/clear_refs").write_text("5")
    before = _status_bytes("VmRSS")
    step()
    return _status_bytes("VmHWM") - before


def saved_bytes(step: Callable[[], object], model: nn.Module) -> int:
    """Bytes that a forward pass keeps for the backward pass.

    Args:
        step: The forward pass.
        model: Whose parameters and buffers do not count: they are there anyway.
    """
    seen: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        seen[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        keep = step()  # alive until counted, so that no address is used twice
    del keep
    for tensor in (*model.parameters(), *model.buffers()):
        seen.pop(tensor.untyped_storage().data_ptr(), None)
    return sum(seen.values())


def describe_machine(device: torch.device) -> dict[str, str]:
    """Names what the numbers depend on."""
    cpu = platform.processor() or platform.machine()
    flags = ""
    if os.path.exists("/proc/cpuinfo"):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        info = dict(line.split(":", 1) for line in lines if ":" in line)
        info = {key.strip(): value.strip() for key, value in info.items()}
        cpu = info.get("model name", cpu)
        known = {"avx2", "avx512f", "avx512_bf16", "amx_bf16"}
        flags = " ".join(sorted(known & set(info.get("flags", "").split())))
    memory = "unknown"
    if hasattr(os, "sysconf"):  # not on Windows
        pages = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        memory = f"{pages >> 30} GiB"
    machine = {
        "date": time.strftime("%Y-%m-%d"),
        "cpu": cpu,
        "instructions": flags,
        "cores": str(os.cpu_count()),
        "threads": str(torch.get_num_threads()),
        "memory": memory,
        "python": platform.python_version(),
        "torch": torch.__version__,
    }
    if device.type == "cuda":
        driver = find_driver()
        machine["device"] = torch.cuda.get_device_name(device)
        machine["driver"] = driver[0] if driver else "unknown"
        machine["triton"] = (
            metadata.version("triton") if is_installed("triton") else "none"
        )
    return machine


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _status_bytes(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    fields = dict(line.split(":", 1) for line in lines)
    return int(fields[key].split()[0]) * 1024
