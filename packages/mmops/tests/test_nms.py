"""The operators of nms.py through mmcv.ops."""

import math

import mmcv.ops
import numpy as np
import pytest
import torch


def make_boxes(number: int, seed: int = 0, extent: float = 60.0):
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(number, 2, generator=generator) * extent
    size = torch.rand(number, 2, generator=generator) * 30 + 0.5
    scores = torch.rand(number, generator=generator)
    return torch.cat((corner, corner + size), dim=1), scores


def overlap(a, b, offset: int = 0, mode: str = "iou") -> float:
    width = min(a[2], b[2]) - max(a[0], b[0]) + offset
    height = min(a[3], b[3]) - max(a[1], b[1]) + offset
    common = max(width, 0) * max(height, 0)
    areas = [(c[2] - c[0] + offset) * (c[3] - c[1] + offset) for c in (a, b)]
    total = areas[0] + areas[1] - common if mode == "iou" else areas[0]
    return common / total if total else math.nan


def twin_nms(boxes, scores, threshold, offset=0):
    order = sorted(range(len(boxes)), key=lambda i: -scores[i])
    kept = []
    for i in order:
        if not any(overlap(boxes[j], boxes[i], offset) > threshold for j in kept):
            kept.append(i)
    return kept


def twin_soft_nms(boxes, scores, threshold, sigma, min_score, method, offset):
    rest, kept = dict(enumerate(scores)), []
    while rest:
        best = max(rest, key=rest.get)
        kept.append((best, rest.pop(best)))
        for i, score in list(rest.items()):
            iou = overlap(boxes[best], boxes[i], offset)
            if method == "gaussian":
                score *= math.exp(-iou * iou / sigma)
            elif iou >= threshold:
                score *= 1 - iou if method == "linear" else 0
            rest[i] = score
            if score < min_score:
                del rest[i]
    return kept


@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.7])
def test_nms(ours, offset, threshold):
    boxes, scores = make_boxes(83)
    dets, kept = mmcv.ops.nms(boxes, scores, threshold, offset)
    assert kept.tolist() == twin_nms(
        boxes.double().tolist(), scores.tolist(), threshold, offset
    )
    assert torch.equal(dets, torch.cat((boxes, scores[:, None]), 1)[kept])


@pytest.mark.parametrize("threshold", [0.5, 0.6, 0.8, 0.2, 0.7])
def test_nms_keeps_a_box_at_the_threshold(ours, threshold):
    width = round(10 * threshold)
    boxes = torch.tensor([[0, 0, 10, 1], [0, 0, width, 1.0]])
    assert mmcv.ops.nms(boxes, torch.tensor([0.9, 0.8]), threshold)[1].tolist() == [
        0,
        1,
    ]


def test_nms_of_degenerate_and_no_boxes(ours):
    boxes = torch.tensor([[5.0, 5, 5, 5], [5, 5, 5, 5], [0, 0, 9, 9]])
    assert mmcv.ops.nms(boxes, torch.rand(3), 0.5)[1].sort()[0].tolist() == [0, 1, 2]
    dets, kept = mmcv.ops.nms(torch.zeros(0, 4), torch.zeros(0), 0.5)
    assert dets.shape == (0, 5)
    assert kept.shape == (0,)
    assert kept.dtype == torch.int64


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_nms_of_other_dtypes(ours, dtype):
    boxes, scores = make_boxes(40)
    boxes, scores = boxes.to(dtype), scores.to(dtype)
    order = ours.nms(boxes, scores, 0.4, 0)
    assert torch.equal(order, ours.nms(boxes.float(), scores.float(), 0.4, 0))
    mixed = ours.nms(boxes, scores.float(), 0.4, 0)
    assert torch.equal(mixed, order)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(ours.nms(boxes, scores, 0.4, 0), order)


def test_nms_takes_arrays_limits_and_score_thresholds(ours):
    boxes, scores = make_boxes(50)
    dets, kept = mmcv.ops.nms(
        boxes.numpy(), scores.numpy(), 0.5, score_threshold=0.4, max_num=4
    )
    assert isinstance(dets, np.ndarray)
    high = (scores > 0.4).nonzero().flatten()
    expected = twin_nms(boxes[high].tolist(), scores[high].tolist(), 0.5)[:4]
    assert kept.tolist() == high[expected].tolist()


@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize("method", ["naive", "linear", "gaussian"])
@pytest.mark.parametrize("min_score", [0.001, 0.3])
def test_soft_nms(ours, method, offset, min_score):
    boxes, scores = make_boxes(61)
    dets, kept = mmcv.ops.soft_nms(boxes, scores, 0.3, 0.5, min_score, method, offset)
    expected = twin_soft_nms(
        boxes.double().tolist(), scores.tolist(), 0.3, 0.5, min_score, method, offset
    )
    assert kept.tolist() == [i for i, _ in expected]
    torch.testing.assert_close(dets[:, 4], torch.tensor([s for _, s in expected]))
    assert torch.equal(dets[:, :4], boxes[kept])
    assert torch.equal(boxes, make_boxes(61)[0])


def test_soft_nms_of_no_boxes_and_half_precision(ours):
    dets, kept = mmcv.ops.soft_nms(torch.zeros(0, 4), torch.zeros(0))
    assert dets.shape == (0, 5)
    assert kept.dtype == torch.int64
    boxes, scores = (v.bfloat16() for v in make_boxes(20))
    with torch.autocast("cpu", torch.bfloat16):
        dets, kept = mmcv.ops.soft_nms(boxes, scores)
    assert dets.dtype == torch.bfloat16
    single, order = mmcv.ops.soft_nms(boxes.float(), scores.float())
    assert torch.equal(kept, order)
    assert torch.equal(dets, single.bfloat16())


def test_nms_match(ours):
    boxes, scores = make_boxes(70)
    groups = mmcv.ops.nms_match(torch.cat((boxes, scores[:, None]), 1), 0.3)
    rest = sorted(range(70), key=lambda i: -scores[i])
    expected = []
    while rest:
        best = rest[0]
        near = [overlap(boxes[best].tolist(), boxes[i].tolist()) >= 0.3 for i in rest]
        expected.append([i for i, n in zip(rest, near, strict=True) if n])
        rest = [i for i, n in zip(rest, near, strict=True) if not n]
    assert [group.tolist() for group in groups] == expected
    assert any(len(group) > 2 for group in groups)


def test_nms_match_of_arrays_and_no_boxes(ours):
    dets = np.array([[0, 0, 2, 2, 0.1], [0, 0, 2, 2, 0.2], [4, 4, 4, 4, 0.3]], "f4")
    groups = mmcv.ops.nms_match(dets, 0.5)
    assert [group.tolist() for group in groups] == [[2], [1, 0]]
    assert mmcv.ops.nms_match(torch.zeros(0, 5), 0.5) == []


@pytest.mark.parametrize("mode", ["iou", "iof"])
@pytest.mark.parametrize("aligned", [False, True])
@pytest.mark.parametrize("offset", [0, 1])
def test_bbox_overlaps(ours, mode, aligned, offset):
    first, second = make_boxes(13)[0], make_boxes(13, seed=1)[0]
    ious = mmcv.ops.bbox_overlaps(first, second, mode, aligned, offset)
    rows = [
        [overlap(a, b, offset, mode) for b in second.double().tolist()]
        for a in first.double().tolist()
    ]
    expected = torch.tensor(rows)
    torch.testing.assert_close(ious, expected.diagonal() if aligned else expected)


def test_bbox_overlaps_of_no_boxes_and_half_precision(ours):
    boxes = make_boxes(7)[0]
    assert mmcv.ops.bbox_overlaps(boxes, torch.zeros(0, 4)).shape == (7, 0)
    single = mmcv.ops.bbox_overlaps(boxes.bfloat16().float(), boxes.bfloat16().float())
    with torch.autocast("cpu", torch.bfloat16):
        half = mmcv.ops.bbox_overlaps(boxes.bfloat16(), boxes.bfloat16())
    assert torch.equal(half, single.bfloat16())


@pytest.mark.parametrize("kind", ["nms", "soft_nms"])
@pytest.mark.parametrize("agnostic", [False, True])
@pytest.mark.parametrize("split_thr", [10000, 20])
def test_batched_nms(ours, kind, agnostic, split_thr):
    boxes, scores = make_boxes(60)
    classes = torch.arange(60) % 3
    config = dict(type=kind, iou_threshold=0.4, split_thr=split_thr)
    dets, kept = mmcv.ops.batched_nms(boxes, scores, classes, config, agnostic)
    assert torch.equal(dets[:, :4], boxes[kept])
    assert (dets[:-1, 4] >= dets[1:, 4]).all()
    if kind == "soft_nms":
        assert (dets[:, 4] <= scores[kept] + 1e-6).all()
        assert (dets[:, 4] < scores[kept]).any()
    elif agnostic and split_thr > 60:
        assert kept.tolist() == twin_nms(boxes.tolist(), scores.tolist(), 0.4)
    elif not agnostic:
        parts = [(classes == c).nonzero().flatten() for c in range(3)]
        expected = [
            part[twin_nms(boxes[part].tolist(), scores[part].tolist(), 0.4)]
            for part in parts
        ]
        assert sorted(kept.tolist()) == sorted(torch.cat(expected).tolist())


def run_soft_nms(boxes, scores, offset):
    results = []
    for method in ("naive", "linear", "gaussian"):
        for low in (0.0, 0.001, 0.25):
            results += mmcv.ops.soft_nms(boxes, scores, 0.3, 0.5, low, method, offset)
    return results


def run_all(boxes, scores, offset):
    results = [*mmcv.ops.nms(boxes, scores, 0.4, offset)]
    results += run_soft_nms(boxes, scores, offset)
    results += mmcv.ops.nms_match(torch.cat((boxes, scores[:, None]), 1), 0.3)
    for mode in ("iou", "iof"):
        results.append(mmcv.ops.bbox_overlaps(boxes, boxes[:7], mode, False, offset))
        results.append(mmcv.ops.bbox_overlaps(boxes, boxes.flip(0), mode, True, offset))
    for kind in ("nms", "soft_nms"):
        for agnostic in (False, True):
            config, classes = dict(type=kind, iou_threshold=0.4), scores.gt(0.5).long()
            args = boxes, scores, classes, config, agnostic
            results += mmcv.ops.batched_nms(*args)
    return results


@pytest.mark.parametrize("offset", [0, 1])
def test_equal_to_the_compiled_operators(compiled, request, offset):
    boxes, scores = make_boxes(300, seed=2)
    # mmcv's soft_nms has an order of equal scores, the sorting of the others has none.
    tied = (scores * 8).round() / 8
    expected = run_all(boxes, scores, offset) + run_soft_nms(boxes, tied, offset)
    request.getfixturevalue("ours")
    actual = run_all(boxes, scores, offset) + run_soft_nms(boxes, tied, offset)
    torch.testing.assert_close(actual, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.gpu
@pytest.mark.parametrize("offset", [0, 1])
def test_gpu_equals_cpu(ours, offset):
    boxes, scores = make_boxes(300, seed=2)
    expected = run_all(boxes, scores, offset)
    actual = run_all(boxes.cuda(), scores.cuda(), offset)
    torch.testing.assert_close([v.cpu() for v in actual], expected)
