"""Time and memory of a call, and a description of the machine."""

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

_MATMUL_SIDE = 2048


def measure_times(
    step: Callable[[], object], device: torch.device, warmup: int, repeat: int
) -> list[float]:
    """Measure the times of calls in seconds, after a warm-up.

    Args:
        step: The call.
        device: Device of the call. It is synchronised before the clock is read.
        warmup: Number of calls that are not timed.
        repeat: Number of timed calls.
    """
    times = []
    for i in range(warmup + repeat):
        _synchronise(device)
        start = time.perf_counter()
        step()
        _synchronise(device)
        if i >= warmup:
            times.append(time.perf_counter() - start)
    return times


def matmul_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Measure the rate of a square matrix product, in multiply-adds a second."""
    a = torch.ones(_MATMUL_SIDE, _MATMUL_SIDE, device=device, dtype=dtype)
    times = measure_times(lambda: a @ a, device, warmup=2, repeat=5)
    return _MATMUL_SIDE**3 / statistics.median(times)


def peak_memory(step: Callable[[], object], device: torch.device) -> int | None:
    """Run a call and return by how many bytes memory grew at its peak.

    On a CPU this is the resident set of the process. Call it in a new process, because
    memory that an earlier call has freed may still be resident and hide the growth.

    Returns:
        Bytes; None on the CPU of a system other than Linux, which does not report them.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        step()
        _synchronise(device)
        return torch.cuda.max_memory_allocated(device) - before
    if not os.path.exists("/proc/self/clear_refs"):
        return None
    # Writing 5 resets the peak of the resident set (VmHWM) to its present size.
    Path("/proc/self/clear_refs").write_text("5")
    before = _status_bytes("VmRSS")
    step()
    return _status_bytes("VmHWM") - before


def saved_bytes(step: Callable[[], object], model: nn.Module) -> int:
    """Count the bytes that a forward pass saves for the backward pass.

    Args:
        step: The forward pass.
        model: Model whose parameters and buffers are not counted.
    """
    sizes: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = step()  # keeps the graph alive, so that no address is used twice
    del result
    for tensor in (*model.parameters(), *model.buffers()):
        sizes.pop(tensor.untyped_storage().data_ptr(), None)
    return sum(sizes.values())


def describe_machine(device: torch.device) -> dict[str, str]:
    """Describe the hardware and software that measurements depend on."""
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


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _status_bytes(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    fields = dict(line.split(":", 1) for line in lines)
    return int(fields[key].split()[0]) * 1024
