"""Test-time augmentation of instance segmentation; mmdet's drops the masks.

``import ravlt`` does not import this module, because it needs mmdet.
"""

import torch
from mmcv.ops import batched_nms
from mmdet.models.test_time_augs import DetTTAModel
from mmdet.structures import DetDataSample
from mmengine.registry import MODELS
from mmengine.structures import InstanceData
from torch import Tensor

# Axes of masks (instances, height, width) that each flip reverses.
_FLIPPED = dict(horizontal=[2], vertical=[1], diagonal=[1, 2])


@MODELS.register_module()
class MaskTTAModel(DetTTAModel):
    """Test-time augmentation that merges boxes and masks of several views of an image.

    NMS selects boxes, as in mmdet. A selected box keeps the mask that was predicted
    with it; masks of several views are not averaged.

    Args:
        tta_cfg: ``nms`` and ``max_per_img``.
        **kwargs: See mmengine's BaseTTAModel.
    """

    def _merge_single_sample(self, data_samples: list[DetDataSample]) -> DetDataSample:
        views = [sample.pred_instances for sample in data_samples]
        if "masks" not in views[0]:
            return super()._merge_single_sample(data_samples)
        metas = [sample.metainfo for sample in data_samples]
        merged = InstanceData.cat(views)
        merged.bboxes = self.merge_aug_bboxes([v.bboxes for v in views], None, metas)
        merged.masks = torch.cat(
            [_flip_back(v.masks, meta) for v, meta in zip(views, metas, strict=True)]
        )
        if len(merged):
            nms = self.tta_cfg.nms
            dets, kept = batched_nms(merged.bboxes, merged.scores, merged.labels, nms)
            merged = merged[kept]
            merged.scores = dets[:, 4]  # soft NMS changes scores
        sample = data_samples[0]
        sample.pred_instances = merged[: self.tta_cfg.max_per_img]
        return sample


def _flip_back(masks: Tensor, meta: dict) -> Tensor:
    return masks.flip(_FLIPPED[meta["flip_direction"]]) if meta["flip"] else masks
