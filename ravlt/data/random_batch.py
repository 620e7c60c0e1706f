"""Random batches of images and labels for models of mmdet and mmseg."""

from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F
from mmengine.structures import InstanceData, PixelData
from torch import Tensor, nn

_BOXES = 8  # boxes in an image
_BRANCHES = ("sup", "unsup_teacher", "unsup_student")  # of semi-supervised detectors


def make_batch(
    model: nn.Module, batch: int, size: tuple[int, int], train: bool
) -> dict:
    """Generate a batch in the format of a data loader: images, or clips of two frames.

    Args:
        model: A detector, tracker or segmentor.
        batch: Number of images or clips.
        size: Height and width.
        train: Whether the batch is for training.

    Returns:
        ``inputs`` and ``data_samples``, for the model's ``data_preprocessor``.
    """
    kinds = {kind.__name__ for kind in type(model).__mro__}
    if "SemiBaseDetector" in kinds and train:
        branches = {name: _images(model, batch, size) for name in _BRANCHES}
        return {
            key: {name: data[key] for name, data in branches.items()}
            for key in ("inputs", "data_samples")
        }
    as_images = train and getattr(model.data_preprocessor, "use_det_processor", False)
    if "BaseMOTModel" in kinds and not as_images:
        return _clips(model, batch, size)
    if "BaseReID" in kinds:
        return _people(batch, size)
    return _images(model, batch, size)


def make_sample(model: nn.Module, size: tuple[int, int]):
    """Generate the data sample of an image: its meta information and random labels.

    Args:
        model: A detector or segmentor.
        size: Height and width of the image.
    """
    if any(kind.__name__ == "BaseSegmentor" for kind in type(model).__mro__):
        return _segmentation_sample(size, model)
    return _detection_sample(size, model)


def _pixels(*shape: int) -> Tensor:
    return torch.randint(256, shape, dtype=torch.uint8)


def _images(model: nn.Module, batch: int, size: tuple[int, int]) -> dict:
    channels = len(getattr(model.data_preprocessor, "mean", "RGB"))
    return dict(
        inputs=list(_pixels(batch, channels, *size)),
        data_samples=[make_sample(model, size) for _ in range(batch)],
    )


def _clips(model: nn.Module, batch: int, size: tuple[int, int]) -> dict:
    from mmdet.structures import TrackDataSample

    samples = []
    for _ in range(batch):
        sample = TrackDataSample(
            metainfo=dict(key_frames_inds=[0], ref_frames_inds=[1])
        )
        frames = [_detection_sample(size, model) for _ in range(2)]
        for i, frame in enumerate(frames):
            frame.set_metainfo(dict(frame_id=i, ori_video_length=2))
        sample.video_data_samples = frames
        samples.append(sample)
    return dict(inputs=list(_pixels(batch, 2, 3, *size)), data_samples=samples)


def _people(batch: int, size: tuple[int, int]) -> dict:
    """Generate two images of each person, for a re-identification model."""
    from mmdet.structures import ReIDDataSample

    height, width = size
    pixels = _pixels(2 * batch, 3, height, width // 2)  # people are upright
    samples = [ReIDDataSample().set_gt_label(i // 2) for i in range(2 * batch)]
    return dict(inputs=list(pixels), data_samples=samples)


def _segmentation_sample(size: tuple[int, int], model: nn.Module):
    from mmseg.structures import SegDataSample

    sample = SegDataSample(metainfo=_metainfo(size))
    # A few regions, as in photographs, instead of every class everywhere.
    regions = torch.randint(getattr(model, "num_classes", 2), (1, 1, 4, 4))
    labels = F.interpolate(regions.float(), size).long()[0]
    sample.gt_sem_seg = PixelData(data=labels)
    sample.gt_edge_map = PixelData(data=torch.randint(2, (1, *size)))
    return sample


def _detection_sample(size: tuple[int, int], model: nn.Module):
    from mmdet.structures import DetDataSample
    from mmdet.structures.mask import BitmapMasks

    height, width = size
    names = {f"{n} {type(m).__name__}".lower() for n, m in model.named_modules()}
    corner = torch.rand(_BOXES, 2) * torch.tensor([width, height]) * 0.7
    boxes = torch.cat((corner, corner + torch.tensor([width, height]) * 0.2), dim=1)
    masks = np.zeros((_BOXES, height, width), np.uint8)
    for mask, (left, top, right, bottom) in zip(masks, boxes.int(), strict=True):
        mask[top:bottom, left:right] = 1
    classes = min(_class_counts(model), default=1)
    truth = InstanceData(bboxes=boxes, labels=torch.arange(_BOXES) % classes)
    if any("mask" in name for name in names):
        truth.masks = BitmapMasks(masks, height, width)
    truth.instances_ids = torch.arange(_BOXES)
    sample = DetDataSample(metainfo=_metainfo(size), gt_instances=truth)
    sample.ignored_instances = InstanceData(bboxes=boxes[:0], labels=truth.labels[:0])
    if not any("rpn_head" in name for name in names):
        # Fast R-CNN needs proposals. A model with an RPN would use these instead of its
        # own.
        sample.proposals = InstanceData(bboxes=boxes, scores=torch.rand(_BOXES))
    # The semantic head of a RoI head (HTC) needs labels at stride 8.
    small = hasattr(getattr(model, "roi_head", None), "semantic_head")
    grid = (height // 8, width // 8) if small else size
    labels = torch.randint(2, (1, *grid), dtype=torch.uint8)
    sample.gt_sem_seg = PixelData(sem_seg=labels)
    return sample


def _class_counts(model: nn.Module) -> Iterator[int]:
    """Yield the number of classes of every head except RPNs, which have one."""
    for part in model.modules():
        count = getattr(part, "num_classes", None)
        if isinstance(count, int) and count > 0 and "RPN" not in type(part).__name__:
            yield count


def _metainfo(size: tuple[int, int]) -> dict:
    return dict(
        img_id=0,
        img_shape=size,
        ori_shape=size,
        pad_shape=size,
        batch_input_shape=size,
        scale_factor=(1.0, 1.0),
        border=(0.0, 0.0, 0.0, 0.0),  # of CenterNet
        homography_matrix=np.eye(3, dtype=np.float32),  # of semi-supervised detectors
    )
