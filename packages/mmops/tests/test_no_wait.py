"""No operator lets the host wait for the GPU where its result has a given size."""

from collections.abc import Callable
from types import ModuleType

import mmcv.ops
import pytest
import torch
from mmcv.ops.multi_scale_deform_attn import MultiScaleDeformableAttnFunction
from mmcv.ops.sync_bn import SyncBatchNormFunction
from torch import Tensor

ROIS = [[0, 3.0, 5.0, 41.0, 33.0], [1, 30.3, 21.7, 80.0, 60.0], [1, 8.0, 8.0, 8.0, 8.0]]
SIZE, SCALE = (3, 2), 0.25


def pool(function: Callable[[Tensor, Tensor], Tensor]):
    return lambda: (function, (torch.rand(2, 8, 9, 11), torch.tensor(ROIS)))


def deform_roi_pool():
    def function(maps: Tensor, rois: Tensor, offset: Tensor) -> Tensor:
        return mmcv.ops.deform_roi_pool(maps, rois, offset, SIZE, SCALE, 2, 0.1)

    offset = torch.rand(len(ROIS), 2, *SIZE)
    return function, (torch.rand(2, 8, 9, 11), torch.tensor(ROIS), offset)


def border_align():
    def function(maps: Tensor, boxes: Tensor) -> Tensor:
        return mmcv.ops.border_align(maps, boxes, 5)

    return function, (torch.rand(2, 8, 9, 11), torch.rand(2, 6, 4) * 8)


def bbox_overlaps():
    return mmcv.ops.bbox_overlaps, (torch.rand(5, 4) + 1, torch.rand(6, 4) + 1)


def focal(loss: Callable[..., Tensor]):
    def function(logits: Tensor, target: Tensor) -> Tensor:
        return loss(logits, target, 2.0, 0.25, None, "sum")

    return lambda: (function, (torch.rand(6, 4), torch.tensor([0, 1, 2, 3, 4, 0])))


def deform_conv():
    def function(image: Tensor, offset: Tensor, weight: Tensor) -> Tensor:
        return mmcv.ops.deform_conv2d(image, offset, weight, 1, 1)

    image, weight = torch.rand(2, 4, 5, 6), torch.rand(3, 4, 3, 3)
    return function, (image, torch.rand(2, 18, 5, 6), weight)


def modulated_deform_conv():
    def function(*tensors: Tensor) -> Tensor:
        return mmcv.ops.modulated_deform_conv2d(*tensors, 1, 1)

    image, offset, mask = (torch.rand(2, n, 5, 6) for n in (4, 18, 9))
    return function, (image, offset, mask, torch.rand(3, 4, 3, 3), torch.rand(3))


def ms_deform_attn():
    def function(value, locations, weights, shapes, starts) -> Tensor:
        attend = MultiScaleDeformableAttnFunction.apply
        return attend(value, shapes, starts, locations, weights, 64)

    shapes, starts = torch.tensor([[4, 5], [2, 2]]), torch.tensor([0, 20])
    locations, weights = torch.rand(2, 3, 2, 2, 4, 2), torch.rand(2, 3, 2, 2, 4)
    return function, (torch.rand(2, 24, 2, 8), locations, weights, shapes, starts)


def carafe(function: Callable[..., Tensor]):
    tensors = torch.rand(2, 4, 5, 6), torch.rand(2, 9, 10, 12)
    return lambda: (lambda x, masks: function(x, masks, 3, 1, 2), tensors)


def sync_bn():
    def function(image, weight, bias, mean, var) -> Tensor:
        args = mean.detach(), var.detach(), weight, bias, 0.1, 1e-5, None, 1, "default"
        return SyncBatchNormFunction.apply(image, *args)

    return function, (torch.rand(2, 4, 5, 6), *(torch.rand(4) for _ in range(4)))


CASES = {
    "bbox_overlaps": bbox_overlaps,
    "RoIAlign, average": pool(mmcv.ops.RoIAlign(SIZE, SCALE, 0)),
    "RoIAlign, largest": pool(mmcv.ops.RoIAlign(SIZE, SCALE, 2, "max")),
    "RoIPool": pool(mmcv.ops.RoIPool(SIZE, SCALE)),
    "PrRoIPool": pool(mmcv.ops.PrRoIPool(SIZE, SCALE)),
    "DeformRoIPool": deform_roi_pool,
    "BorderAlign": border_align,
    "sigmoid_focal_loss": focal(mmcv.ops.sigmoid_focal_loss),
    "softmax_focal_loss": focal(mmcv.ops.softmax_focal_loss),
    "DeformConv2d": deform_conv,
    "ModulatedDeformConv2d": modulated_deform_conv,
    "MultiScaleDeformableAttention": ms_deform_attn,
    "CARAFE": carafe(mmcv.ops.carafe),
    "CARAFENaive": carafe(mmcv.ops.carafe_naive),
    "PSAMask": lambda: (mmcv.ops.PSAMask("collect", (3, 3)), (torch.rand(2, 9, 4, 5),)),
    "SyncBatchNorm": sync_bn,
}
DEVICES = pytest.mark.parametrize(
    "device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
)


def run_without_waiting(call: Callable[[], object], device: str, request) -> None:
    """Call twice: the first call loads kernels, for which the host may wait."""
    call()
    if device == "cuda":
        request.getfixturevalue("no_sync")
    call()


@DEVICES
@pytest.mark.parametrize("name", CASES)
def test_forward_and_backward(ours: ModuleType, request, name: str, device: str):
    function, tensors = CASES[name]()
    tensors = [tensor.to(device) for tensor in tensors]
    if name == "CARAFENaive" and device == "cpu":
        pytest.skip("mmcv asserts CUDA in its backward pass")

    def call() -> None:
        inputs = [t.requires_grad_(t.is_floating_point()) for t in tensors]
        output = function(*inputs)
        if output.requires_grad:
            output.sum().backward()

    run_without_waiting(call, device, request)
    if name != "bbox_overlaps":
        assert tensors[0].grad.isfinite().all()


@DEVICES
def test_masked_convolution(ours: ModuleType, request, device: str):
    """mmcv finds the pixels, for which it waits, before it calls the operators."""
    image, h, w = torch.rand(1, 3, 5, 6), torch.tensor([0, 4]), torch.tensor([5, 2])
    image, h, w = (tensor.to(device) for tensor in (image, h, w))
    columns, size = image.new_zeros(27, 2), dict(kernel_h=3, kernel_w=3)

    def call() -> None:
        ours.masked_im2col_forward(image, h, w, columns, **size, pad_h=1, pad_w=1)
        result = torch.zeros_like(image)
        args = h, w, result
        ours.masked_col2im_forward(columns[:3], *args, height=5, width=6, channels=3)

    run_without_waiting(call, device, request)
    assert columns.any()


def test_all_operators_are_tested():
    from test_missing import PROMISED

    waiting = {"nms", "batched_nms", "soft_nms", "nms_match"}
    others = {"MaskedConv2d", "SAConv2d"}
    others |= {"DeformRoIPoolPack", "ModulatedDeformRoIPoolPack"}
    tested = {name.split(",")[0] for name in CASES} - {"DeformRoIPool"}
    assert tested == {n for n, f in PROMISED.items() if f} - waiting - others
