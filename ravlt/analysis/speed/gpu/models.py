"""Times and memory of backbones in inference, and of training steps."""

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from ravlt.analysis.speed.timing import peak_memory
from ravlt.analysis.subjects import (
    autocast_to,
    build_subject,
    is_config,
    make_run,
    make_step,
)
from ravlt.inference.fold import switch_to_deploy

from .journal import Case
from .timing import time_form

Size = tuple[int, int]
LINEAR, SWIN, CONVNEXT = "ravlt_t:rala", "swin_tiny_patch4_window7_224", "convnext_tiny"
BACKBONES = (LINEAR, "ravlt_t", SWIN, CONVNEXT, "resnet50", "pvt_v2_b2")
PLAIN = "reference_t:rala"
AUTOCAST, PURE = "autocast", "bfloat16"
DTYPE = torch.bfloat16
_FOLDED = ", folded"
_FORMS = ("eager", "graph")


@dataclass(frozen=True)
class InferenceSizes:
    """Batches of images, (batch, size), at which backbones are measured.

    Args:
        images: Batches for all backbones.
        pure: Batches for all backbones with weights in bfloat16.
        linear: Further batches for the all-linear network, whose growth over pixels is
            a target.
        compiled: Batches for the three networks that the targets compare.
        models: Names of all backbones, the all-linear one first.
    """

    images: tuple[tuple[int, Size], ...]
    pure: tuple[tuple[int, Size], ...]
    linear: tuple[tuple[int, Size], ...]
    compiled: tuple[tuple[int, Size], ...]
    models: tuple[str, ...] = (*BACKBONES, PLAIN)


@dataclass(frozen=True)
class TrainingSizes:
    """Batches of images, (batch, size), at which training steps are measured.

    Args:
        images: Batches for all backbones.
        hosts: Batch of each detector or segmentor, by config.
        models: Names of all backbones.
    """

    images: tuple[tuple[int, Size], ...]
    hosts: dict[str, tuple[int, Size]]
    models: tuple[str, ...] = (*BACKBONES, PLAIN)


_DETECTION, _SEGMENTATION = (2, (800, 1344)), (8, (512, 512))
FULL_INFERENCE = InferenceSizes(
    images=((1, (800, 1344)), (8, (800, 1344)), (1, (1600, 2560)), (1, (2160, 3840))),
    pure=((1, (800, 1344)), (8, (800, 1344))),
    linear=((1, (512, 512)),),
    compiled=((8, (800, 1344)), (1, (800, 1344))),
)
# Paths of this library's configs are relative to its folder of configs.
FULL_TRAINING = TrainingSizes(
    images=((8, (512, 512)), (8, (800, 1344))),
    hosts={
        "mask_rcnn/mask-rcnn_ravlt-t-linear_fpn_1x_coco.py": _DETECTION,
        "mask_rcnn/mask-rcnn_ravlt-t_fpn_1x_coco.py": _DETECTION,
        "mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py": _DETECTION,
        "mmdet::swin/mask-rcnn_swin-t-p4-w7_fpn_1x_coco.py": _DETECTION,
        "upernet/upernet_ravlt-t-linear_8xb2-160k_ade20k-512x512.py": _SEGMENTATION,
        "upernet/upernet_ravlt-t_8xb2-160k_ade20k-512x512.py": _SEGMENTATION,
        "mmseg::upernet/upernet_r50_4xb4-160k_ade20k-512x512.py": _SEGMENTATION,
        "mmseg::swin/swin-tiny-patch4-window7-in1k-pre_upernet_8xb2-160k_ade20k-"
        "512x512.py": _SEGMENTATION,
    },
)
_QUICK_MODELS = ("ravlt_test:rala", "test_convnext")
QUICK_INFERENCE = InferenceSizes(
    images=((1, (64, 64)),),
    pure=((1, (64, 64)),),
    linear=((1, (32, 32)),),
    compiled=(),
    models=_QUICK_MODELS,
)
QUICK_TRAINING = TrainingSizes(
    images=((2, (64, 64)),),
    hosts={"quickstart/fpn_ravlt-mini_shapes.py": (1, (64, 64))},
    models=_QUICK_MODELS,
)


def backbone_cases(device: torch.device, sizes: InferenceSizes) -> Iterator[Case]:
    """Yield the measurements of inference, the most important ones first."""
    linear = sizes.models[0]
    for image in sizes.images:
        for name in sizes.models:
            yield from _inference(device, name, image, AUTOCAST, _FORMS)
    for image in sizes.linear:
        yield from _inference(device, linear, image, AUTOCAST, _FORMS)
    for image in sizes.pure:
        for name in sizes.models:
            yield from _inference(device, name, image, PURE, _FORMS)
        yield from _inference(device, linear + _FOLDED, image, PURE, _FORMS)
    for image in sizes.compiled:
        for name in (LINEAR, SWIN, CONVNEXT):
            yield from _inference(device, name, image, AUTOCAST, ("compiled",))


def training_cases(
    device: torch.device, sizes: TrainingSizes, configs: Path
) -> Iterator[Case]:
    """Yield the measurements of training steps.

    Args:
        device: Device of the models.
        sizes: Models and batches to measure.
        configs: Folder of this library's configs.
    """
    for image in sizes.images:
        for name in sizes.models:
            yield _training(device, name, name, image)
    for name, image in sizes.hosts.items():
        path = name if "::" in name else str(configs / name)
        yield _training(device, name, path, image)


def _inference(
    device: torch.device,
    name: str,
    image: tuple[int, Size],
    precision: str,
    forms: tuple[str, ...],
) -> Iterator[Case]:
    for form in forms:
        labels = _labels(name, form, precision, image)
        measure = functools.partial(_infer, device, name, image, precision, form)
        yield Case(labels, measure)


def _infer(
    device: torch.device,
    name: str,
    image: tuple[int, Size],
    precision: str,
    form: str,
) -> dict:
    torch.backends.cudnn.benchmark = True
    model = _load(name, image[1], device).eval()
    if precision == PURE:
        model.to(DTYPE)
    if form == "compiled":
        torch.compiler.reset()  # shapes count towards the limit of recompilations
        model = torch.compile(model, dynamic=False)
    dtype = DTYPE if precision == AUTOCAST else torch.float32
    step = make_step(
        model, name, *image, train=False, memory_format=torch.channels_last
    )
    run = make_run(step, model, False, autocast_to(dtype, device))
    return _memory_and_time(run, form, device)


def _training(
    device: torch.device, name: str, path: str, image: tuple[int, Size]
) -> Case:
    return Case(
        _labels(name, "eager", AUTOCAST, image),
        functools.partial(_train, device, path, image),
    )


def _train(device: torch.device, name: str, image: tuple[int, Size]) -> dict:
    # Detectors have tensors of new shapes in every step, and the choice of the fastest
    # algorithm would start again for each of them.
    torch.backends.cudnn.benchmark = not is_config(name)
    model = _load(name, image[1], device).train()
    step = make_step(model, name, *image, train=True, memory_format=torch.channels_last)
    run = make_run(step, model, True, autocast_to(DTYPE, device))
    return _memory_and_time(run, "eager", device)


def _memory_and_time(
    run: Callable[[], object], form: str, device: torch.device
) -> dict:
    """Measure the peak of memory beyond weights and input, and the time.

    A graph has no peak of its own: it needs the memory of the call that it replays.
    """
    run()  # allocates buffers of libraries and chooses algorithms
    results = {}
    if form != "graph":
        memory = peak_memory(run, device)
        results["peak_mb"] = None if memory is None else memory / 1e6
    return results | time_form(run, form, device)


def _load(name: str, size: Size, device: torch.device) -> nn.Module:
    """Build a backbone with channels-last weights, or the model of a config."""
    torch.manual_seed(0)
    model = build_subject(name.removesuffix(_FOLDED), size).to(device)
    if name.endswith(_FOLDED):
        switch_to_deploy(model)
    if is_config(name):
        return model
    return model.to(memory_format=torch.channels_last)


def _labels(name: str, form: str, precision: str, image: tuple[int, Size]) -> dict:
    batch, (height, width) = image
    return {
        "model": name,
        "form": form,
        "precision": precision,
        "batch": batch,
        "size": f"{height}x{width}",
    }
