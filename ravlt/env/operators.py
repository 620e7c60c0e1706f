"""mmcv's operators, each tried with a call."""

import importlib
import warnings
from collections.abc import Callable

import torch
from torch import Tensor


def probe_operators(device: str) -> dict[str, Exception | None]:
    """Call each operator that a config of the hosts can need.

    Args:
        device: Where to call them, such as ``"cpu"`` or ``"cuda:0"``.

    Returns:
        For each operator the exception that its call raised, or None. Empty if
        ``mmcv.ops`` does not import.
    """
    try:
        ops = importlib.import_module("mmcv.ops")
    except Exception:  # whatever a broken binary raises
        return {}
    return {name: _error_of(call, ops, device) for name, call in _CALLS.items()}


def import_error() -> Exception | None:
    """Import ``mmcv.ops`` and run nms on the CPU.

    Returns:
        The exception that this raised, or None.
    """
    try:
        ops = importlib.import_module("mmcv.ops")
    except Exception as error:  # whatever a broken binary raises
        return error
    return _error_of(_CALLS["nms"], ops, "cpu")


def _error_of(call: Callable, ops, device: str) -> Exception | None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of mmcv's own code
            call(ops, device)
        if device.startswith("cuda"):
            # A kernel that cannot run is reported at the next synchronisation.
            torch.cuda.synchronize(device)
    except Exception as error:  # whatever a broken binary raises
        return error
    return None


def _boxes(device: str) -> tuple[Tensor, Tensor]:
    boxes = torch.tensor([[0.0, 0.0, 4.0, 4.0], [0.0, 0.0, 4.0, 4.1]], device=device)
    return boxes, torch.tensor([0.9, 0.8], device=device)


def _rois(device: str) -> Tensor:
    return torch.tensor([[0.0, 1.0, 1.0, 5.0, 5.0]], device=device)


def _map(device: str, channels: int = 4, size: int = 8) -> Tensor:
    return torch.ones(1, channels, size, size, device=device)


def _zeros(device: str, *shape: int) -> Tensor:
    return torch.zeros(*shape, device=device)


def _ms_deform_attn(ops, device: str) -> None:
    attend = ops.multi_scale_deform_attn.MultiScaleDeformableAttnFunction.apply
    value = torch.ones(1, 4, 1, 4, device=device)
    shapes = torch.tensor([[2, 2]], device=device)
    start = torch.tensor([0], device=device)
    locations = torch.full((1, 1, 1, 1, 1, 2), 0.5, device=device)
    attend(value, shapes, start, locations, torch.ones_like(locations[..., 0]), 64)


def _masked_conv2d(ops, device: str) -> None:
    mask = torch.ones(1, 8, 8, device=device)
    weight = torch.ones(2, 4, 3, 3, device=device)
    ops.masked_conv2d(_map(device), mask, weight, torch.ones(2, device=device), 1)


def _sync_batch_norm(ops, device: str) -> None:
    normalize = ops.sync_bn.SyncBatchNormFunction.apply
    zeros, ones = torch.zeros(4, device=device), torch.ones(4, device=device)
    running = (zeros.clone(), ones.clone())
    # Without a process group, as in a run of one process.
    normalize(_map(device), *running, ones, zeros, 0.1, 1e-5, None, 1, "default")


_CALLS: dict[str, Callable] = {
    "nms": lambda ops, d: ops.nms(*_boxes(d), 0.5),
    "soft_nms": lambda ops, d: ops.soft_nms(*_boxes(d)),
    "nms_match": lambda ops, d: ops.nms_match(
        torch.cat([_boxes(d)[0], _boxes(d)[1][:, None]], 1), 0.5
    ),
    "roi_align": lambda ops, d: ops.roi_align(_map(d), _rois(d), 2),
    "roi_pool": lambda ops, d: ops.roi_pool(_map(d), _rois(d), 2),
    "deform_roi_pool": lambda ops, d: ops.DeformRoIPool(2)(_map(d), _rois(d)),
    "border_align": lambda ops, d: ops.border_align(_map(d), _zeros(d, 1, 64, 4), 2),
    "prroi_pool": lambda ops, d: ops.PrRoIPool(2)(_map(d), _rois(d)),
    "sigmoid_focal_loss": lambda ops, d: ops.sigmoid_focal_loss(
        _zeros(d, 2, 3), _zeros(d, 2).long(), 2.0, 0.25, None, "mean"
    ),
    "softmax_focal_loss": lambda ops, d: ops.softmax_focal_loss(
        _zeros(d, 2, 3), _zeros(d, 2).long(), 2.0, 0.25, None, "mean"
    ),
    "deform_conv2d": lambda ops, d: ops.deform_conv2d(
        _map(d), _zeros(d, 1, 18, 8, 8), _zeros(d, 2, 4, 3, 3), 1, 1
    ),
    "modulated_deform_conv2d": lambda ops, d: ops.modulated_deform_conv2d(
        _map(d),
        _zeros(d, 1, 18, 8, 8),
        _zeros(d, 1, 9, 8, 8),
        _zeros(d, 2, 4, 3, 3),
        _zeros(d, 2),
        1,
        1,
    ),
    "ms_deform_attn": _ms_deform_attn,
    "masked_conv2d": _masked_conv2d,
    "carafe": lambda ops, d: ops.CARAFE(3, 1, 2)(_map(d), _zeros(d, 1, 9, 16, 16)),
    "carafe_naive": lambda ops, d: ops.CARAFENaive(3, 1, 2)(
        _map(d), _zeros(d, 1, 9, 16, 16)
    ),
    "psa_mask": lambda ops, d: ops.PSAMask("collect", (3, 3))(_map(d, 9)),
    "corner_pool": lambda ops, d: ops.CornerPool("top")(_map(d)),
    "point_sample": lambda ops, d: ops.point_sample(_map(d), _zeros(d, 1, 2, 2)),
    "sync_batch_norm": _sync_batch_norm,
}
