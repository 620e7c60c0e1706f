"""Measure the operators beside a compiled mmcv's on the CPU, as a Markdown table.

The ratio means something only where mmcv was compiled with optimisation: CFLAGS with
-O0 or -O1 slow its kernels two to four times.

Usage: PYTHONPATH=packages/mmops/src python packages/mmops/benchmark.py [part of a name]
"""

import importlib.util
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import ModuleType

import mmcv._ext
import torch
from torch import Tensor

THREADS = 2
SECONDS = 6.0  # a row
SOURCE = Path(__file__).parent / "src" / "mmcv" / "_ext.py"

# What a row measures: a name, and for a module of operators the call to measure.
Row = tuple[str, Callable[[ModuleType], object]]


def load_ours() -> ModuleType:
    """Return this checkout's operators."""
    spec = importlib.util.spec_from_file_location("ravlt_mmops_ext", SOURCE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def make_boxes(number: int, height: int, width: int) -> Tensor:
    """Return random boxes in an image, sides of 16 to 400 pixels."""
    centre = torch.rand(number, 2) * torch.tensor([width, height])
    size = 16 * 25 ** torch.rand(number, 2)
    boxes = torch.cat((centre - size / 2, centre + size / 2), dim=1)
    limit = torch.tensor([width, height, width, height], dtype=torch.float32)
    return boxes.clamp(min=0).minimum(limit)


def nms_rows() -> Iterator[Row]:
    """Yield the rows of non-maximum suppression and overlaps."""
    for number in (2000, 20000):
        boxes, scores = make_boxes(number, 800, 1280), torch.rand(number)
        yield (
            f"nms, {number} boxes",
            lambda m, b=boxes, s=scores: m.nms(b, s, iou_threshold=0.7, offset=0),
        )
    boxes, scores = make_boxes(1000, 800, 1280), torch.rand(1000)
    yield (
        "softnms, 1000 boxes",
        lambda m: m.softnms(
            boxes,
            scores,
            torch.empty(1000, 5),
            iou_threshold=0.3,
            sigma=0.5,
            min_score=0.05,
            method=2,
            offset=0,
        ),
    )
    dets = torch.cat((boxes, scores[:, None]), dim=1)
    yield "nms_match, 1000 boxes", lambda m: m.nms_match(dets, iou_threshold=0.7)
    ious = torch.empty(1000, 2000)
    others = make_boxes(2000, 800, 1280)
    yield (
        "bbox_overlaps, 1000 x 2000",
        lambda m: m.bbox_overlaps(boxes, others, ious, mode=0, aligned=False, offset=0),
    )


def roi_align_rows() -> Iterator[Row]:
    """Yield the rows of RoIAlign."""
    maps = torch.randn(1, 256, 200, 320)
    rois = torch.cat((torch.zeros(1000, 1), make_boxes(1000, 800, 1280)), dim=1)
    output, none = torch.empty(1000, 256, 7, 7), torch.empty(0)
    size = dict(aligned_height=7, aligned_width=7, spatial_scale=0.25, aligned=True)
    for ratio in (0, 2):
        args = dict(**size, sampling_ratio=ratio)

        yield (
            f"roi_align_forward, sampling_ratio {ratio}",
            lambda m, args=args: m.roi_align_forward(
                maps, rois, output, none, none, pool_mode=1, **args
            ),
        )
        # mmcv adds to the buffer: its Python hands over a new one.
        yield (
            f"roi_align_backward, sampling_ratio {ratio}",
            lambda m, args=args: m.roi_align_backward(
                output, rois, none, none, torch.zeros_like(maps), pool_mode=1, **args
            ),
        )
    buffers = [torch.empty_like(output) for _ in range(3)]
    yield (
        "roi_align_forward, largest sample of 2 x 2",
        lambda m: m.roi_align_forward(
            maps, rois, *buffers, pool_mode=0, sampling_ratio=2, **size
        ),
    )


def cuda_only_rows() -> Iterator[Row]:
    """Yield the rows of operators without a CPU kernel in mmcv."""
    maps = torch.randn(1, 256, 200, 320)
    rois = torch.cat((torch.zeros(1000, 1), make_boxes(1000, 800, 1280)), dim=1)
    output = torch.empty(1000, 256, 7, 7)
    argmax = torch.empty(1000, 256, 7, 7, dtype=torch.int32)
    size = dict(pooled_height=7, pooled_width=7, spatial_scale=0.25)
    yield (
        "roi_pool_forward",
        lambda m: m.roi_pool_forward(maps, rois, output, argmax, **size),
    )
    yield (
        "roi_pool_backward",
        lambda m: m.roi_pool_backward(
            output, rois, argmax, torch.zeros_like(maps), **size
        ),
    )
    yield (
        "prroi_pool_forward",
        lambda m: m.prroi_pool_forward(maps, rois, output, **size),
    )
    offset = torch.randn(1000, 2, 7, 7)
    deform = dict(**size, sampling_ratio=2, gamma=0.1)
    yield (
        "deform_roi_pool_forward, sampling_ratio 2",
        lambda m: m.deform_roi_pool_forward(maps, rois, offset, output, **deform),
    )
    yield (
        "deform_roi_pool_backward, sampling_ratio 2",
        lambda m: m.deform_roi_pool_backward(
            output,
            maps,
            rois,
            offset,
            torch.zeros_like(maps),
            torch.zeros_like(offset),
            **deform,
        ),
    )
    wide, boxes = torch.randn(1, 1024, 50, 80), make_boxes(4000, 50, 80)[None]
    borders = torch.empty(1, 256, 4000, 4)
    places = torch.empty(1, 256, 4000, 4, dtype=torch.int32)
    yield (
        "border_align_forward, 4000 boxes",
        lambda m: m.border_align_forward(wide, boxes, borders, places, pool_size=10),
    )


ROWS = (nms_rows, roi_align_rows, cuda_only_rows)


def measure(calls: list[Callable[[], object]]) -> list[float]:
    """Return the median seconds of each call, one after the other in turns.

    Args:
        calls: Functions without arguments.
    """
    times = [[] for _ in calls]
    for call in calls:
        call()
    end = time.perf_counter() + SECONDS
    while len(times[0]) < 3 or time.perf_counter() < end:
        for call, spent in zip(calls, times, strict=True):
            start = time.perf_counter()
            call()
            spent.append(time.perf_counter() - start)
    return [statistics.median(spent) for spent in times]


def main() -> None:
    """Print one table row an operator."""
    torch.set_num_threads(THREADS)
    torch.manual_seed(0)
    ours = load_ours()
    compiled = None if mmcv._ext.__file__.endswith(".py") else mmcv._ext
    wanted = sys.argv[1] if len(sys.argv) > 1 else ""
    print("| Operator | ravlt-mmops | compiled mmcv | ratio |")
    print("| --- | ---: | ---: | ---: |")
    for rows in ROWS:
        for name, call in rows():
            if wanted not in name:
                continue
            calls = [partial(call, ours)]
            if compiled and rows is not cuda_only_rows:
                calls.append(partial(call, compiled))
            spent = measure(calls)
            cells = [f"{1000 * seconds:.1f} ms" for seconds in spent]
            ratio = f"{spent[0] / spent[1]:.2f}" if len(spent) > 1 else "-"
            print(f"| {name} | {' | '.join([*cells, '-'][:2])} | {ratio} |", flush=True)


if __name__ == "__main__":
    main()
