"""Test-time augmentation of detectors with masks, which mmdet's own leaves out.

``import ravlt`` does not import it, since it needs mmdet.
"""

import torch
from mmcv.ops import batched_nms
from mmdet.models.test_time_augs import DetTTAModel
from mmdet.structures import DetDataSample
from mmengine.registry import MODELS
from mmengine.structures import InstanceData
from torch import Tensor

# Axes of masks (instances, height, width) that a flip turns round.
_FLIPPED = dict(horizontal=[2], vertical=[1], diagonal=[1, 2])


@MODELS.register_module()
class MaskTTAModel(DetTTAModel):
    """Merges what a detector found in several views of an image, masks included.

    Boxes are merged by NMS, as in mmdet, and a box that stays keeps the mask that was
    predicted with it: masks of several views are not averaged.

    Args:
        tta_cfg: ``nms`` and ``max_per_img``.
        **kwargs: As of mmengine's BaseTTAModel.
    """

    def _merge_single_sample(self, data_samples: list[DetDataSample]) -> DetDataSample:
        views = [sample.pred_instances for sample in data_samples]
        if "masks" not in views[0]:
            return super()._merge_single_sample(data_samples)
        metas = [sample.metainfo for sample in data_samples]
        found = InstanceData.cat(views)
        found.bboxes = self.merge_aug_bboxes([v.bboxes for v in views], None, metas)
        found.masks = torch.cat(
            [_unflipped(v.masks, meta) for v, meta in zip(views, metas, strict=True)]
        )
        if len(found):
            nms = self.tta_cfg.nms
            dets, kept = batched_nms(found.bboxes, found.scores, found.labels, nms)
            found = found[kept]
            found.scores = dets[:, 4]  # soft NMS lowers them
        merged = data_samples[0]
        merged.pred_instances = found[: self.tta_cfg.max_per_img]
        return merged


def _unflipped(masks: Tensor, meta: dict) -> Tensor:
    return masks.flip(_FLIPPED[meta["flip_direction"]]) if meta["flip"] else masks
