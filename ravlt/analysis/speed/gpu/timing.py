"""Times on a GPU: of calls, of CUDA graphs, and of single kernels."""

import statistics
from collections.abc import Callable

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from ravlt.analysis.speed.timing import measure_times
from ravlt.errors import RAVLTError

_REPEAT = 20
# If _REPEAT calls take more than _MAX_SECONDS, there are fewer, but _MIN_REPEAT.
_MAX_SECONDS, _MIN_REPEAT = 2.0, 3
# Bytes written between calls to flush the cache: at least, and in sizes of the cache.
_MIN_FLUSH, _FLUSHED_CACHES = 1 << 28, 4


def time_form(step: Callable[[], object], form: str, device: torch.device) -> dict:
    """Time a call, or replays of it as a CUDA graph.

    Args:
        step: The call.
        form: ``'graph'`` captures the call. Its replays are queued behind other work of
            the GPU, so that their time contains no launches. With any other form a call
            starts on an idle GPU, and its time contains the launches of its kernels.
        device: Device of the call.

    Returns:
        ``seconds`` (median), ``seconds_min``, ``seconds_max`` and ``repeats``.
    """
    if form == "graph":
        return summarize(cold_times(capture(step), device, queued=True))
    return summarize(cold_times(step, device))


def cold_times(
    step: Callable[[], object], device: torch.device, queued: bool = False
) -> list[float]:
    """Measure the times of calls in seconds, after a warm-up, with a flushed cache.

    Args:
        step: The call.
        device: Device of the call. On a CPU the cache is not flushed.
        queued: Whether a call is queued while the GPU still flushes the cache, so that
            its time contains no launches.
    """
    step()
    (first,) = _times(step, device, queued, 1)
    repeat = min(_REPEAT, max(_MIN_REPEAT, int(_MAX_SECONDS / max(first, 1e-6))))
    _times(step, device, queued, repeat // 4)  # the GPU's clock rises under load
    return _times(step, device, queued, repeat)


def _times(
    step: Callable[[], object], device: torch.device, queued: bool, repeat: int
) -> list[float]:
    if device.type == "cpu":
        return measure_times(step, device, warmup=0, repeat=repeat)
    cache = torch.cuda.get_device_properties(device).L2_cache_size
    size = max(_FLUSHED_CACHES * cache, _MIN_FLUSH)
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
    """Return the median, minimum and maximum of times, and their number."""
    return {
        "seconds": statistics.median(times),
        "seconds_min": min(times),
        "seconds_max": max(times),
        "repeats": len(times),
    }


def capture(step: Callable[[], object]) -> Callable[[], None]:
    """Capture a call as a CUDA graph; the current stream must not be the default one.

    Returns:
        A function that replays the graph.

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
    """Time a copy of random data, whose bandwidth turns bytes into minimal times.

    Args:
        device: Device of the data.
        size: Bytes to copy, many times the size of the cache.

    Returns:
        The times as from :func:`summarize`, and ``bytes`` read and written.
    """
    source = torch.randn(size // 2, device=device).bfloat16()
    target = torch.empty_like(source)
    times = cold_times(lambda: target.copy_(source), device, queued=True)
    return summarize(times) | {"bytes": 2 * source.nbytes}


def kernel_times(step: Callable[[], object], device: torch.device) -> dict[str, float]:
    """Profile calls and return the mean seconds a call spends in each kernel.

    Args:
        step: The call.
        device: Device of the call. On a CPU, PyTorch's operators take the place of
            kernels.
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
