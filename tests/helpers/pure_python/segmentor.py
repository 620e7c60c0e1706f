# A segmentor as MMSegmentation's configs in pure Python spell it.
from mmcv.transforms import LoadImageFromFile, RandomFlip
from mmengine.config import read_base
from mmseg.datasets import BaseSegDataset
from mmseg.datasets.transforms import LoadAnnotations, PackSegInputs
from mmseg.engine import SegVisualizationHook
from mmseg.evaluation import IoUMetric
from mmseg.models import EncoderDecoder, FPNHead, SegDataPreProcessor
from mmseg.models.losses import CrossEntropyLoss
from mmseg.models.necks import FPN
from mmseg.models.segmentors import SegTTAModel
from mmseg.visualization import SegLocalVisualizer
from torch.nn import BatchNorm2d

from ravlt.models import RAVLT

with read_base():
    from .runtime import *  # noqa: F403

model = dict(
    type=EncoderDecoder,
    data_preprocessor=dict(type=SegDataPreProcessor, size=(64, 64), seg_pad_val=255),
    backbone=dict(type=RAVLT, arch="test"),
    neck=dict(type=FPN, in_channels=[16, 32, 48, 64], out_channels=32, num_outs=4),
    decode_head=dict(
        type=FPNHead,
        in_channels=[32, 32, 32, 32],
        in_index=[0, 1, 2, 3],
        feature_strides=[4, 8, 16, 32],
        channels=16,
        dropout_ratio=0,
        num_classes=6,
        norm_cfg=dict(type=BatchNorm2d),
        align_corners=False,
        loss_decode=dict(type=CrossEntropyLoss),
    ),
    train_cfg=dict(),
    test_cfg=dict(mode="whole"),
)
tta_model = dict(type=SegTTAModel)

train_pipeline = [
    dict(type=LoadImageFromFile),
    dict(type=LoadAnnotations, reduce_zero_label=True),
    dict(type=RandomFlip, prob=0.5),
    dict(type=PackSegInputs),
]
test_pipeline = [
    dict(type=LoadImageFromFile),
    dict(type=LoadAnnotations, reduce_zero_label=True),
    dict(type=PackSegInputs),
]
dataset = dict(
    type=BaseSegDataset,
    data_root=data_root,  # noqa: F405
    metainfo=dict(
        classes=("background", "disk", "square", "triangle", "star", "cross"),
        palette=[[i, i, i] for i in range(6)],
    ),
    img_suffix=".jpg",
    seg_map_suffix=".png",
    reduce_zero_label=True,
)
train_dataloader.update(  # noqa: F405
    dataset=dict(
        **dataset,
        data_prefix=dict(
            img_path="images/training", seg_map_path="annotations/training"
        ),
        pipeline=train_pipeline,
    )
)
val_dataloader.update(  # noqa: F405
    dataset=dict(
        **dataset,
        data_prefix=dict(
            img_path="images/validation", seg_map_path="annotations/validation"
        ),
        pipeline=test_pipeline,
    )
)
test_dataloader = val_dataloader  # noqa: F405
val_evaluator = dict(type=IoUMetric, iou_metrics=["mDice"])
test_evaluator = val_evaluator

default_hooks.update(visualization=dict(type=SegVisualizationHook))  # noqa: F405
visualizer = dict(
    type=SegLocalVisualizer,
    vis_backends=vis_backends,  # noqa: F405
    name="visualizer",
)
