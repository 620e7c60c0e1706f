"""Time the operators beside a compiled mmcv, or beside what the hosts run without one.

Prints a Markdown table of medians. Needs mmdet; the column of a compiled mmcv is filled
where one is installed:

    PYTHONPATH=packages/mmops/src python packages/mmops/benchmark.py [PART_OF_A_NAME]
"""

import importlib.util
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import mmcv._ext
import torch
import torch.nn.functional as F
from mmcv import ops
from mmdet.models.losses.focal_loss import py_sigmoid_focal_loss
from torch import Tensor

THREADS = 2
SECONDS = 0.1  # a row
SOURCE = Path(__file__).parent / "src" / "mmcv" / "_ext.py"


class Row(NamedTuple):
    """One operator.

    Args:
        name: The operator and its input's size.
        run: Calls it through ``mmcv.ops``.
        formula: What the hosts run where mmcv has no CPU kernel.
        on_cpu: Whether a compiled mmcv has a CPU kernel.
    """

    name: str
    run: Callable[[], object]
    formula: Callable[[], object] | None = None
    on_cpu: bool = True


def main() -> None:
    """Print one row for each operator."""
    torch.set_num_threads(THREADS)
    torch.manual_seed(0)
    ours = _load_ours()
    compiled = None if mmcv._ext.__file__.endswith(".py") else mmcv._ext
    wanted = sys.argv[1] if len(sys.argv) > 1 else ""
    print("| operator | ravlt-mmops | compiled mmcv | Python formula | ratio |")
    print("|---|---:|---:|---:|---:|")
    for rows in (_box_rows, _roi_rows, _loss_rows, _attention_rows, _convolution_rows):
        for row in rows():
            if wanted in row.name:
                print(_measure(row, ours, compiled), flush=True)


def _measure(row: Row, ours: ModuleType, compiled: ModuleType | None) -> str:
    sides = {"ours": lambda: _call_with(ours, row.run)}
    if compiled is not None and row.on_cpu:
        sides["compiled"] = lambda: _call_with(compiled, row.run)
    if row.formula is not None:
        sides["formula"] = row.formula
    times = {name: [] for name in sides}
    for call in sides.values():
        call()
    end = time.perf_counter() + SECONDS
    while len(times["ours"]) < 3 or time.perf_counter() < end:
        for name, call in sides.items():  # in turns: the machine's speed varies
            start = time.perf_counter()
            call()
            times[name].append(time.perf_counter() - start)
    spent = {name: statistics.median(values) for name, values in times.items()}
    cells = [
        f"{1000 * spent[name]:.1f} ms" if name in spent else ""
        for name in ("ours", "compiled", "formula")
    ]
    others = [spent[name] for name in ("compiled", "formula") if name in spent]
    ratio = f"{spent['ours'] / others[0]:.2f}" if others else ""
    return f"| {row.name} | {' | '.join(cells)} | {ratio} |"


def _call_with(module: ModuleType, run: Callable[[], object]) -> None:
    for name, loaded in list(sys.modules.items()):
        if name.startswith("mmcv.ops.") and hasattr(loaded, "ext_module"):
            loaded.ext_module = module
    run()


def _load_ours() -> ModuleType:
    spec = importlib.util.spec_from_file_location("ravlt_mmops_ext", SOURCE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _train(function: Callable[..., Tensor], *tensors: Tensor) -> Callable[[], object]:
    """Return a call of a function and of its gradients."""
    tensors = [tensor.requires_grad_() for tensor in tensors]
    return lambda: torch.autograd.grad(function(*tensors).sum(), tensors)


def _make_boxes(number: int, height: int = 800, width: int = 1280) -> Tensor:
    """Return random boxes in an image, sides of 16 to 400 pixels."""
    centre = torch.rand(number, 2) * torch.tensor([width, height])
    size = 16 * 25 ** torch.rand(number, 2)
    boxes = torch.cat((centre - size / 2, centre + size / 2), dim=1)
    limit = torch.tensor([width, height, width, height], dtype=torch.float32)
    return boxes.clamp(min=0).minimum(limit)


def _box_rows() -> Iterator[Row]:
    for number in (2000, 20000):
        boxes, scores = _make_boxes(number), torch.rand(number)
        yield Row(f"nms, {number} boxes", lambda b=boxes, s=scores: ops.nms(b, s, 0.7))
    boxes, scores = _make_boxes(1000), torch.rand(1000)
    yield Row("soft_nms, 1000 boxes", lambda: ops.soft_nms(boxes, scores))
    dets = torch.cat((boxes, scores[:, None]), dim=1)
    yield Row("nms_match, 1000 boxes", lambda: ops.nms_match(dets, 0.7))


def _roi_rows() -> Iterator[Row]:
    maps = torch.randn(1, 256, 200, 320)
    rois = torch.cat((torch.zeros(1000, 1), _make_boxes(1000)), dim=1)
    for mode in ("avg", "max"):

        def align(maps: Tensor, ratio: int, mode: str = mode) -> Tensor:
            return ops.roi_align(maps, rois, 7, 0.25, ratio, mode)

        for ratio in (0, 2) if mode == "avg" else (2,):
            name = f"roi_align, {mode}, 1000 RoIs, sampling_ratio {ratio}"
            yield Row(name, lambda r=ratio, f=align: f(maps, r))
            yield Row(
                f"{name}, and gradient",
                _train(lambda x, r=ratio, f=align: f(x, r), maps.clone()),
            )
    yield Row(
        "roi_pool, 1000 RoIs, and gradient",
        _train(lambda x: ops.roi_pool(x, rois, 7, 0.25), maps.clone()),
        on_cpu=False,
    )
    offset = 0.1 * torch.randn(1000, 2, 7, 7)
    pool = ops.DeformRoIPool(7, 0.25, 2)
    yield Row(
        "deform_roi_pool, 1000 RoIs, and gradients",
        _train(lambda x, o: pool(x, rois, o), maps.clone(), offset),
        on_cpu=False,
    )


def _loss_rows() -> Iterator[Row]:
    logits, target = torch.randn(100_000, 80), torch.randint(0, 81, (100_000,))

    def operator(x: Tensor) -> Tensor:
        return ops.sigmoid_focal_loss(x, target, 2.0, 0.25, None, "sum")

    def formula(x: Tensor) -> Tensor:
        one_hot = F.one_hot(target, 81)[:, :80]
        return py_sigmoid_focal_loss(x, one_hot, reduction="sum")

    yield Row(
        "sigmoid_focal_loss, 100,000 x 80, and gradient",
        _train(operator, logits),
        _train(formula, logits),
        on_cpu=False,
    )


def _attention_rows() -> Iterator[Row]:
    shapes = torch.tensor([[100, 160], [50, 80], [25, 40], [13, 20]])
    sizes = shapes.prod(1)
    starts, tokens = sizes.cumsum(0) - sizes, int(sizes.sum())
    tensors = (
        torch.randn(1, tokens, 8, 32),
        torch.rand(1, tokens, 8, 4, 4, 2),
        torch.rand(1, tokens, 8, 4, 4),
    )
    module = ops.multi_scale_deform_attn

    def operator(value: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
        attend = module.MultiScaleDeformableAttnFunction.apply
        return attend(value, shapes, starts, locations, weights, 64)

    def formula(value: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
        return module.multi_scale_deformable_attn_pytorch(
            value, shapes, locations, weights
        )

    name = f"ms_deform_attn, {tokens} queries"
    yield Row(name, lambda: operator(*tensors), lambda: formula(*tensors), on_cpu=False)
    copies = [tensor.clone() for tensor in tensors]
    yield Row(
        f"{name}, and gradients",
        _train(operator, *copies),
        _train(formula, *copies),
        on_cpu=False,
    )


def _convolution_rows() -> Iterator[Row]:
    image, weight = torch.randn(1, 256, 100, 160), torch.randn(256, 256, 3, 3)
    offset, mask = torch.randn(1, 18, 100, 160), torch.rand(1, 9, 100, 160)
    yield Row(
        "deform_conv2d, 256 x 100 x 160, and gradients",
        _train(lambda x, o, w: ops.deform_conv2d(x, o, w, 1, 1), image, offset, weight),
    )
    yield Row(
        "modulated_deform_conv2d, the same",
        _train(
            lambda x, o, m, w, b: ops.modulated_deform_conv2d(x, o, m, w, b, 1, 1),
            *(image, offset, mask, weight, torch.randn(256)),
        ),
    )
    kernels = torch.rand(1, 25, 200, 320)
    carafe = ops.CARAFE(5, 1, 2)
    yield Row("carafe, 256 x 100 x 160", lambda: carafe(image, kernels), on_cpu=False)
    yield Row(
        "carafe, the same, and gradients",
        _train(lambda x, k: carafe(x, k), image, kernels),
        on_cpu=False,
    )


if __name__ == "__main__":
    main()
