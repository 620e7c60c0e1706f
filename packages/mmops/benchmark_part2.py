"""Measure operators beside compiled mmcv or the Python formulas of mmcv and mmdet.

Run in an environment with a compiled mmcv 2.1.0 and mmdet:

    PYTHONPATH=packages/mmops/src python packages/mmops/benchmark_part2.py
"""

import argparse
import importlib.util
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import mmcv._ext
import mmcv.ops
import torch
import torch.nn.functional as F
from mmcv.ops import deform_conv, modulated_deform_conv, multi_scale_deform_attn
from mmdet.models.losses.focal_loss import py_sigmoid_focal_loss
from torch import Tensor

EXT = Path(__file__).parent / "src" / "mmcv" / "_ext.py"


def load_ours():
    """Return this checkout's module of operators."""
    spec = importlib.util.spec_from_file_location("ravlt_mmops_ext", EXT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def train(function: Callable, *tensors: Tensor) -> Callable[[], None]:
    """Return a call of a function and of its gradients."""
    tensors = [tensor.requires_grad_() for tensor in tensors]
    factors = torch.rand_like(function(*tensors))

    def run() -> None:
        torch.autograd.grad(function(*tensors), tensors, factors)

    return run


def using(module, ext, run: Callable[[], None]) -> Callable[[], None]:
    """Return the call with the given operators in one module of mmcv.ops."""

    def patched() -> None:
        module.ext_module = ext
        run()

    return patched


def sigmoid_focal_loss(ours, theirs) -> tuple[str, str, Callable, Callable]:
    logits = torch.randn(100_000, 80)
    target = torch.randint(0, 81, (100_000,))

    def fused(logits: Tensor) -> Tensor:
        return mmcv.ops.sigmoid_focal_loss(logits, target, 2.0, 0.25, None, "sum")

    def formula(logits: Tensor) -> Tensor:
        one_hot = F.one_hot(target, 81)[:, :80]
        return py_sigmoid_focal_loss(logits, one_hot, reduction="sum")

    mmcv.ops.focal_loss.ext_module = ours
    return (
        "sigmoid_focal_loss",
        "mmdet's formula",
        train(fused, logits),
        train(formula, logits),
    )


def ms_deform_attn(ours, theirs) -> tuple[str, str, Callable, Callable]:
    shapes = torch.tensor([[100, 160], [50, 80], [25, 40], [13, 20]])
    sizes = shapes.prod(1)
    starts, tokens = sizes.cumsum(0) - sizes, int(sizes.sum())
    value = torch.randn(1, tokens, 8, 32)
    locations = torch.rand(1, tokens, 8, 4, 4, 2)
    weights = torch.rand(1, tokens, 8, 4, 4)
    function = multi_scale_deform_attn.MultiScaleDeformableAttnFunction.apply

    def fused(value: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
        return function(value, shapes, starts, locations, weights, 64)

    def formula(value: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
        return multi_scale_deform_attn.multi_scale_deformable_attn_pytorch(
            value, shapes, locations, weights
        )

    multi_scale_deform_attn.ext_module = ours
    tensors = value, locations, weights
    return (
        "ms_deform_attn",
        "mmcv's formula",
        train(fused, *tensors),
        train(formula, *tensors),
    )


def convolution(ours, theirs, modulated: bool) -> tuple[str, str, Callable, Callable]:
    image, weight = torch.randn(1, 256, 100, 160), torch.randn(256, 256, 3, 3)
    offset, mask = torch.randn(1, 18, 100, 160), torch.rand(1, 9, 100, 160)
    if modulated:
        module = modulated_deform_conv
        name = "modulated_deform_conv"
        tensors = image, offset, mask, weight, torch.randn(256)
        function = module.modulated_deform_conv2d
        rest = (1, 1)
    else:
        module, name, rest = deform_conv, "deform_conv", (1, 1)
        tensors, function = (image, offset, weight), module.deform_conv2d

    module.ext_module = ours
    run = train(lambda *tensors: function(*tensors, *rest), *tensors)
    return (
        name,
        "compiled mmcv",
        using(module, ours, run),
        using(module, theirs, run),
    )


def measure(ours: Callable, theirs: Callable, rounds: int) -> tuple[float, float]:
    """Return the median seconds of interleaved calls."""
    seconds = [[], []]
    for _ in range(rounds + 1):
        for run, results in zip((ours, theirs), seconds, strict=True):
            start = time.perf_counter()
            run()
            results.append(time.perf_counter() - start)
    # The first round warms up.
    first, second = (statistics.median(results[1:]) for results in seconds)
    return first, second


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="calls of each side")
    parser.add_argument("--threads", type=int, default=2, help="threads of PyTorch")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    ours = load_ours()
    print("| Operator, forward and backward | ms | Beside | ms | Ratio |")
    print("|---|---:|---|---:|---:|")
    for make, *rest in (
        (sigmoid_focal_loss,),
        (ms_deform_attn,),
        (convolution, False),
        (convolution, True),
    ):
        name, beside, mine, other = make(ours, mmcv._ext, *rest)
        a, b = measure(mine, other, args.rounds)
        print(f"| {name} | {a * 1e3:.0f} | {beside} | {b * 1e3:.0f} | {a / b:.2f} |")


if __name__ == "__main__":
    main()
