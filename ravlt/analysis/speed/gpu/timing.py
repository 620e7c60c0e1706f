"""Times on a GPU: by events, of CUDA graphs, and of single kernels."""

import statistics
from collections.abc import Callable

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from ravlt.analysis.speed.timing import measure_times
from ravlt.errors import RAVLTError

_REPEAT = 20
# Calls so long that 20 of them take more seconds are repeated less often.
_SECONDS, _LEAST = 2.0, 3
_MIN_FLUSH = 1 << 28
_CACHES = 4  # bytes written between calls, in caches


def time_form(step: Callable[[], object], form: str, device: torch.device) -> dict:
    """Time a call as it is, or replays of it as a CUDA graph.

    Args:
        step: What to time.
        form: ``'graph'`` captures the call. Its replays wait in the queue of the GPU,
            so that their time is that of the GPU alone. Any other form starts on an
            idle GPU: the time contains the launches.
        device: Where it computes.

    Returns:
        ``seconds`` (median), ``seconds_min``, ``seconds_max`` and ``repeats``.
    """
    if form == "graph":
        return summarize(cold_times(capture(step), device, queued=True))
    return summarize(cold_times(step, device))


def cold_times(
    step: Callable[[], object], device: torch.device, queued: bool = False
) -> list[float]:
    """Time calls after a warm-up, in seconds, with nothing useful in the cache.

    Args:
        step: What to time.
        device: Where it computes. On a CPU the cache stays as it is.
        queued: Whether the GPU is still busy with earlier work when the call comes.
    """
    step()
    (first,) = _times(step, device, queued, 1)
    repeat = min(_REPEAT, max(_LEAST, int(_SECONDS / max(first, 1e-6))))
    _times(step, device, queued, repeat // 4)  # clocks rise under load
    return _times(step, device, queued, repeat)


def _times(
    step: Callable[[], object], device: torch.device, queued: bool, repeat: int
) -> list[float]:
    if device.type == "cpu":
        return measure_times(step, device, warmup=0, repeat=repeat)
    cache = torch.cuda.get_device_properties(device).L2_cache_size
    size = max(_CACHES * cache, _MIN_FLUSH)
    flushed = torch.empty(size, dtype=torch.int8, device=device)
    times = []
    for _ in range(repeat):
        flushed.zero_()
        if not queued:
            torch.cuda.synchronize(device)
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        step()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) / 1e3)
    return times


def summarize(times: list[float]) -> dict:
    """Return median, fastest and slowest of some times, and their number."""
    return {
        "seconds": statistics.median(times),
        "seconds_min": min(times),
        "seconds_max": max(times),
        "repeats": len(times),
    }


def capture(step: Callable[[], object]) -> Callable[[], None]:
    """Capture a call as a CUDA graph; the current stream must not be the default one.

    Returns:
        A function that replays it.

    Raises:
        RAVLTError: If there is no GPU.
    """
    if not torch.cuda.is_available():
        raise RAVLTError("CUDA graphs need a GPU.")
    step()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=torch.cuda.current_stream()):
        step()
    return graph.replay


def copy_rate(device: torch.device, size: int) -> dict:
    """Time a copy of random data, the divisor of all floors.

    Args:
        device: Where the data are.
        size: Bytes to copy, well over the cache.

    Returns:
        The times, and ``bytes`` read and written.
    """
    source = torch.randn(size // 2, device=device).bfloat16()
    target = torch.empty_like(source)
    times = cold_times(lambda: target.copy_(source), device, queued=True)
    return summarize(times) | {"bytes": 2 * source.nbytes}


def kernel_times(step: Callable[[], object], device: torch.device) -> dict[str, float]:
    """Profile calls and return the mean seconds of a call by name of the kernel.

    Args:
        step: What to profile.
        device: A GPU; on a CPU the operators of PyTorch stand for kernels.
    """
    on_gpu = device.type == "cuda"
    activity = ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU
    kind = DeviceType.CUDA if on_gpu else DeviceType.CPU
    step()
    with profile(activities=[activity]) as profiler:
        for _ in range(_REPEAT):
            step()
        if on_gpu:
            torch.cuda.synchronize(device)
    total: dict[str, float] = {}
    for event in profiler.key_averages():
        if event.device_type == kind:
            time = event.self_device_time_total if on_gpu else event.self_cpu_time_total
            total[event.key] = total.get(event.key, 0.0) + time
    return {name: time / _REPEAT / 1e6 for name, time in total.items()}
