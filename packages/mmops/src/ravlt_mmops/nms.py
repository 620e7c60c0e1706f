"""Non-maximum suppression and overlaps of boxes."""

import numpy as np
import torch
import torchvision
from torch import Tensor

from ravlt_mmops.precision import at_least_float32


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float, offset: int) -> Tensor:
    """Suppress boxes that overlap a box of higher score.

    Args:
        boxes: x1, y1, x2, y2, ``(boxes, 4)``.
        scores: ``(boxes,)``.
        iou_threshold: A box is dropped when its overlap is larger.
        offset: 0, or 1 where x2 and y2 are the last pixels inside a box.

    Returns:
        The indices of the kept boxes by falling score, int64.
    """
    dtype = torch.promote_types(
        torch.promote_types(boxes.dtype, scores.dtype), torch.float32
    )
    boxes, scores = boxes.to(dtype), scores.to(dtype)
    if offset:
        boxes = torch.cat((boxes[:, :2], boxes[:, 2:] + offset), dim=1)
    # mmcv compares in float32: 0.6 and an overlap of 0.6 are equal there.
    return torchvision.ops.nms(boxes, scores, float(np.float32(iou_threshold)))


def softnms(
    boxes: Tensor,
    scores: Tensor,
    dets: Tensor,
    iou_threshold: float,
    sigma: float,
    min_score: float,
    method: int,
    offset: int,
) -> Tensor:
    """Lower the scores of boxes that overlap a box of higher score.

    The method of "Soft-NMS: Improving Object Detection With One Line of Code"
    (https://arxiv.org/abs/1704.04503). mmcv calls it with tensors on the CPU.

    Args:
        boxes: x1, y1, x2, y2, ``(boxes, 4)``.
        scores: ``(boxes,)``.
        dets: Buffer for the kept boxes with their new scores, ``(boxes, 5)``. Only
            its first rows are filled.
        iou_threshold: The overlap from which methods 0 and 1 act.
        sigma: The variance of method 2.
        min_score: A box is dropped when its score falls below.
        method: 0 drops the box, 1 multiplies its score by one minus the overlap,
            2 by a Gaussian of the overlap.
        offset: 0, or 1 where x2 and y2 are the last pixels inside a box.

    Returns:
        The indices of the kept boxes in the order of ``dets``, int64.
    """
    number = len(boxes)
    table = _to_columns(boxes, scores)
    order = np.arange(number, dtype=np.int64)
    step = 0
    while step < number:
        best = step + table[4, step:number].argmax()
        table[:, [step, best]] = table[:, [best, step]]
        order[[step, best]] = order[[best, step]]
        rest = slice(step + 1, number)
        overlap = _overlap_first(table[:4, step:number], offset)
        if method == 2:
            table[4, rest] *= np.exp(-(overlap * overlap) / sigma)
        else:
            lowered = 1 - overlap if method == 1 else 0
            table[4, rest] *= np.where(overlap >= iou_threshold, lowered, 1)
        kept = step + 1 + _fill_gaps(table[4, rest] >= min_score)
        table[:, step + 1 : step + 1 + len(kept)] = table[:, kept]
        order[step + 1 : step + 1 + len(kept)] = order[kept]
        number = step + 1 + len(kept)
        step += 1
    dets[:number] = torch.from_numpy(table[:, :number].T)
    return torch.from_numpy(order[:number])


def nms_match(dets: Tensor, iou_threshold: float) -> list[list[int]]:
    """Group every kept box with the boxes that it suppresses.

    Args:
        dets: x1, y1, x2, y2, score on the CPU, ``(boxes, 5)``.
        iou_threshold: The overlap from which a box is suppressed.

    Returns:
        The indices of each group by falling score, groups by falling score.
    """
    rest = dets[:, 4].sort(descending=True, stable=True).indices.numpy()
    table = _to_columns(dets[:, :4], dets[:, 4])[:4, rest]
    groups = []
    while len(rest):
        near = _overlap_first(table, offset=0) >= iou_threshold
        groups.append([rest[0].item(), *rest[1:][near].tolist()])
        rest, table = rest[1:][~near], table[:, 1:][:, ~near]
    return groups


def bbox_overlaps(
    bboxes1: Tensor,
    bboxes2: Tensor,
    ious: Tensor,
    mode: int,
    aligned: bool,
    offset: int,
) -> None:
    """Compute the overlaps of boxes.

    Args:
        bboxes1: x1, y1, x2, y2, ``(m, 4)``.
        bboxes2: x1, y1, x2, y2, ``(n, 4)``.
        ious: Buffer for the overlaps, ``(m, n)``, or ``(m,)`` if aligned.
        mode: 0 divides by the union's area, 1 by the first box's.
        aligned: Whether the i-th box meets the i-th only.
        offset: 0, or 1 where x2 and y2 are the last pixels inside a box.
    """
    first = at_least_float32(bboxes1 if aligned else bboxes1[:, None])
    x1, y1, x2, y2 = first.unbind(-1)
    u1, v1, u2, v2 = at_least_float32(bboxes2).unbind(-1)
    common = (torch.min(x2, u2) - torch.max(x1, u1) + offset).clamp_(min=0)
    common = common * (torch.min(y2, v2) - torch.max(y1, v1) + offset).clamp_(min=0)
    total = (x2 - x1 + offset) * (y2 - y1 + offset)
    if mode == 0:
        total = total + (u2 - u1 + offset) * (v2 - v1 + offset) - common
    ious.copy_(common / total)


def _to_columns(boxes: Tensor, scores: Tensor) -> np.ndarray:
    """Return boxes and scores as rows x1, y1, x2, y2, score of a new array."""
    table = torch.cat((at_least_float32(boxes).T, at_least_float32(scores)[None]))
    return table.contiguous().numpy()


def _overlap_first(table: np.ndarray, offset: int) -> np.ndarray:
    """Compute the overlaps of the first box with the others, ``(4, boxes)``."""
    areas = (table[2] - table[0] + offset) * (table[3] - table[1] + offset)
    (x1, y1, x2, y2), others = table[:, 0], table[:, 1:]
    width = np.minimum(x2, others[2]) - np.maximum(x1, others[0]) + offset
    height = np.minimum(y2, others[3]) - np.maximum(y1, others[1]) + offset
    common = np.maximum(width, 0) * np.maximum(height, 0)
    with np.errstate(invalid="ignore", divide="ignore"):  # boxes without area
        return common / (areas[0] + areas[1:] - common)


def _fill_gaps(kept: np.ndarray) -> np.ndarray:
    """Return the kept positions, gaps filled from the end.

    This is the order that mmcv's loop leaves. It decides between equal scores.

    Args:
        kept: Which positions are kept, bool.
    """
    number = np.count_nonzero(kept)
    positions = np.arange(number)
    positions[~kept[:number]] = number + np.flatnonzero(kept[number:])[::-1]
    return positions
