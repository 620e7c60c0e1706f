"""Costs of the parts of a detector or segmentor: parameters and multiply-adds."""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import nn

from ravlt.analysis.subjects import build_subject
from ravlt.data.random_batch import make_sample
from ravlt.models.ravlt import Stage

from .macs import count_macs_by_module

# RoIs of the box and mask heads in MMDetection 2's counts, which the paper reports.
_PROPOSALS, _MASKS = 1000, 100
_ROI_HEADS = ("StandardRoIHead", "CascadeRoIHead")


@dataclass
class Cost:
    """Parameters, and multiply-adds without and with the products of attention."""

    params: int = 0
    macs_without_attention: int = 0
    macs: int = 0

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(
            self.params + other.params,
            self.macs_without_attention + other.macs_without_attention,
            self.macs + other.macs,
        )


class _Inference(nn.Module):
    """Module that calls a model in its forward pass; parts are then counted by name."""

    def __init__(self, model: nn.Module, step: Callable[[], object]) -> None:
        super().__init__()
        self.model = model
        self._step = step

    def forward(self) -> object:
        return self._step()


def costs_of(name: str, size: tuple[int, int]) -> dict[str, Cost]:
    """Build a model and count its costs, on the meta device if it can run there.

    Args:
        name: As in :func:`ravlt.analysis.subjects.build_subject`.
        size: Height and width of the image.

    Returns:
        As in :func:`count_costs`.
    """
    try:
        with torch.device("meta"):
            return count_costs(build_subject(name, size), size)
    except RuntimeError:  # some models branch on the values of tensors
        return count_costs(build_subject(name, size), size)


def count_costs(model: nn.Module, size: tuple[int, int]) -> dict[str, Cost]:
    """Count the costs of inference on one image for each part of a model.

    mmdet's StandardRoIHead and CascadeRoIHead are counted with the boxes of 1000
    proposals and the masks of 100, in every stage of a cascade. Other models are
    counted with what the host computes for one image.

    Args:
        model: A detector, a segmentor, or a network that takes images. On the meta
            device nothing is computed.
        size: Height and width of the image.

    Returns:
        Costs by the name of the part: the children of the backbone (one entry for each
        stage), the other children of the model, 'rest' if these do not add up to the
        total, and 'total'.
    """
    model = model.eval()
    step = _inference_step(model, size)
    with _without_roi_pooling(model), _explicit_attention(model):
        counts = count_macs_by_module(_Inference(model, step))
    parts = {
        name: _cost(f"_Inference.model.{name}", part, counts)
        for name, part in _parts(model)
    }
    parts = {name: cost for name, cost in parts.items() if cost != Cost()}
    total = Cost(sum(p.numel() for p in model.parameters()), *counts["Global"])
    rest = sum(parts.values(), Cost())
    if rest != total:  # the model's own costs; negative if parts share a module
        parts["rest"] = Cost(
            total.params - rest.params,
            total.macs_without_attention - rest.macs_without_attention,
            total.macs - rest.macs,
        )
    return parts | {"total": total}


def _parts(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    backbone = getattr(model, "backbone", None)
    if backbone is None:
        yield from _children("", model)
        return
    yield from _children("backbone.", backbone)
    for name, child in model.named_children():
        if child is not backbone:
            yield name, child


def _children(prefix: str, module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    for name, child in module.named_children():
        if name == "layers" and isinstance(child, nn.ModuleList):
            for i, stage in enumerate(child):
                yield f"{prefix}layers.{i}", stage
        else:
            yield prefix + name, child


def _cost(name: str, part: nn.Module, counts: dict[str, tuple[int, int]]) -> Cost:
    params = sum(p.numel() for p in part.parameters())
    return Cost(params, *_macs(name, part, counts))


def _macs(
    name: str, part: nn.Module, counts: dict[str, tuple[int, int]]
) -> tuple[int, int]:
    """Return the MACs of a part, or the sum over its children if it was not called."""
    if isinstance(part, Stage):  # the trunk, not the stage, calls its downsampling
        called = [counts[name], counts.get(f"{name}.downsample", (0, 0))]
    elif name in counts:
        called = [counts[name]]
    else:
        children = part.named_children()
        called = [_macs(f"{name}.{n}", child, counts) for n, child in children]
    return sum(a for a, _ in called), sum(b for _, b in called)


def _inference_step(model: nn.Module, size: tuple[int, int]) -> Callable[[], object]:
    device = next(model.parameters()).device
    image = torch.zeros(1, 3, *size, device=device)
    if not hasattr(model, "data_preprocessor"):  # not a model of the hosts
        return lambda: model(image)
    if type(getattr(model, "roi_head", None)).__name__ in _ROI_HEADS:
        return lambda: _two_stages(model, image)
    sample = make_sample(model, size)
    if hasattr(model, "encode_decode"):  # mmseg's 'tensor' mode ignores the samples
        return lambda: model.encode_decode(image, [sample.metainfo])
    return lambda: model(image, [sample], mode="tensor")


def _two_stages(model: nn.Module, image: torch.Tensor) -> None:
    """Run a two-stage detector with fixed numbers of RoIs."""
    maps = model.extract_feat(image)
    model.rpn_head(maps)
    head = model.roi_head
    for stage in range(getattr(head, "num_stages", 1)):
        index = (stage,) if hasattr(head, "num_stages") else ()
        head._bbox_forward(*index, maps, image.new_zeros(_PROPOSALS, 5))
        if head.with_mask:
            head._mask_forward(*index, maps, image.new_zeros(_MASKS, 5))


def _explicit_attention(model: nn.Module) -> contextlib.AbstractContextManager:
    """Return a context in which attention is not fused.

    FlopCounterMode does not count the fused kernel of the CPU.
    """
    if next(model.parameters()).is_meta:
        return contextlib.nullcontext()
    from torch.nn.attention import SDPBackend, sdpa_kernel  # PyTorch 2.3

    return sdpa_kernel(SDPBackend.MATH)


@contextlib.contextmanager
def _without_roi_pooling(model: nn.Module) -> Iterator[None]:
    """Replace RoI pooling by zeros of the same shape.

    Pooling has no multiply-adds that are counted, and cannot run on the meta device.
    """
    extractors = [m for m in model.modules() if hasattr(m, "roi_layers")]

    def zeros_for(extractor: nn.Module) -> Callable[..., torch.Tensor]:
        size = extractor.roi_layers[0].output_size
        channels = extractor.out_channels
        return lambda maps, rois, *_: maps[0].new_zeros(len(rois), channels, *size)

    for extractor in extractors:
        extractor.forward = zeros_for(extractor)
    try:
        yield
    finally:
        for extractor in extractors:
            del extractor.forward
