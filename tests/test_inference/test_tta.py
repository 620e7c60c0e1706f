"""Test-time augmentation with masks, against views merged by hand."""

import pytest
import torch
from mmdet.structures import DetDataSample
from mmengine.config import ConfigDict
from mmengine.model import BaseModel
from mmengine.structures import InstanceData

from ravlt.inference.tta import MaskTTAModel

HEIGHT, WIDTH = 20, 30


class Nothing(BaseModel):
    def forward(self, inputs, data_samples=None, mode="tensor"):
        return []


def flip(box: list[int], direction: str | None) -> list[int]:
    x1, y1, x2, y2 = box
    if direction in ("horizontal", "diagonal"):
        x1, x2 = WIDTH - x2, WIDTH - x1
    if direction in ("vertical", "diagonal"):
        y1, y2 = HEIGHT - y2, HEIGHT - y1
    return [x1, y1, x2, y2]


def rectangle(x1: int, y1: int, x2: int, y2: int) -> torch.Tensor:
    mask = torch.zeros(HEIGHT, WIDTH, dtype=torch.bool)
    mask[y1:y2, x1:x2] = True
    return mask


def view(found: list[tuple], direction: str | None = None) -> DetDataSample:
    """Return the predictions in a view: boxes, each filled by its mask."""
    boxes = [flip(box, direction) for box, _, _ in found]
    masks = [rectangle(*box) for box in boxes]
    instances = InstanceData(
        bboxes=torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        scores=torch.tensor([score for _, score, _ in found]),
        labels=torch.tensor([label for _, _, label in found], dtype=torch.int64),
        masks=torch.stack(masks) if masks else torch.zeros(0, HEIGHT, WIDTH).bool(),
    )
    flipped = direction is not None
    meta = dict(ori_shape=(HEIGHT, WIDTH), flip=flipped, flip_direction=direction)
    return DetDataSample(metainfo=meta, pred_instances=instances)


def merge(*views: DetDataSample, max_per_img: int = 100) -> InstanceData:
    nms = dict(type="nms", iou_threshold=0.5)
    model = MaskTTAModel(
        tta_cfg=ConfigDict(nms=nms, max_per_img=max_per_img), module=Nothing()
    )
    (merged,) = model.merge_preds([list(views)])
    return merged.pred_instances


BOTH, PLAIN_ONLY, OTHER_CLASS = [2, 3, 8, 9], [20, 1, 27, 6], [2, 3, 8, 10]
FLIPPED_ONLY = [10, 5, 14, 19]


@pytest.mark.parametrize("direction", ["horizontal", "vertical", "diagonal"])
def test_boxes_and_masks_of_two_views(direction):
    plain = view([(BOTH, 0.9, 0), (PLAIN_ONLY, 0.3, 0)])
    flipped = view(
        [([2, 3, 9, 9], 0.6, 0), (FLIPPED_ONLY, 0.7, 1), (OTHER_CLASS, 0.5, 1)],
        direction,
    )
    expected = [
        (BOTH, 0.9, 0),
        (FLIPPED_ONLY, 0.7, 1),
        (OTHER_CLASS, 0.5, 1),
        (PLAIN_ONLY, 0.3, 0),
    ]
    found = merge(flipped, plain)
    assert found.bboxes.tolist() == [box for box, _, _ in expected]
    assert found.scores.tolist() == pytest.approx([score for _, score, _ in expected])
    assert found.labels.tolist() == [label for _, _, label in expected]
    for mask, (box, _, _) in zip(found.masks, expected, strict=True):
        assert torch.equal(mask, rectangle(*box))


def test_the_highest_scores_are_kept():
    views = view([(PLAIN_ONLY, 0.3, 0)]), view([(BOTH, 0.9, 1)], "horizontal")
    found = merge(*views, max_per_img=1)
    assert found.bboxes.tolist() == [BOTH]
    assert torch.equal(found.masks, rectangle(*BOTH)[None])


def test_views_without_predictions():
    found = merge(view([]), view([], "horizontal"))
    assert found.bboxes.shape == (0, 4)
    assert found.masks.shape == (0, HEIGHT, WIDTH)


def test_without_masks_the_result_is_mmdets():
    views = [view([(BOTH, 0.9, 0)]), view([(BOTH, 0.8, 0)], "horizontal")]
    for sample in views:
        del sample.pred_instances.masks
    found = merge(*views)
    assert found.bboxes.tolist() == [BOTH]
    assert "masks" not in found
