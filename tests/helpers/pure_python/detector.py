# A detector as MMDetection's configs in pure Python spell it.
from mmcv.ops import nms
from mmcv.transforms import LoadImageFromFile
from mmdet.datasets import CocoDataset
from mmdet.datasets.transforms import LoadAnnotations, PackDetInputs, RandomFlip, Resize
from mmdet.engine.hooks import DetVisualizationHook
from mmdet.evaluation import CocoMetric
from mmdet.models import FPN, DetDataPreprocessor, RetinaHead, RetinaNet
from mmdet.models.losses import FocalLoss, L1Loss
from mmdet.models.task_modules import (
    AnchorGenerator,
    DeltaXYWHBBoxCoder,
    MaxIoUAssigner,
    PseudoSampler,
)
from mmdet.visualization import DetLocalVisualizer
from mmengine.config import read_base
from mmengine.runner import EpochBasedTrainLoop

from ravlt.models import RAVLT

with read_base():
    from .runtime import *  # noqa: F403

model = dict(
    type=RetinaNet,
    data_preprocessor=dict(type=DetDataPreprocessor, pad_size_divisor=32),
    backbone=dict(type=RAVLT, arch="test"),
    neck=dict(type=FPN, in_channels=[16, 32, 48, 64], out_channels=32, num_outs=5),
    bbox_head=dict(
        type=RetinaHead,
        num_classes=5,
        in_channels=32,
        stacked_convs=1,
        feat_channels=32,
        anchor_generator=dict(
            type=AnchorGenerator,
            scales=[4],
            ratios=[1.0],
            strides=[4, 8, 16, 32, 64],
        ),
        bbox_coder=dict(type=DeltaXYWHBBoxCoder),
        loss_cls=dict(type=FocalLoss),
        loss_bbox=dict(type=L1Loss),
    ),
    train_cfg=dict(
        assigner=dict(
            type=MaxIoUAssigner, pos_iou_thr=0.5, neg_iou_thr=0.4, min_pos_iou=0
        ),
        sampler=dict(type=PseudoSampler),
        allowed_border=-1,
        pos_weight=-1,
    ),
    test_cfg=dict(
        nms_pre=100,
        score_thr=0.0,
        nms=dict(type=nms, iou_threshold=0.5),
        max_per_img=10,
    ),
)

metainfo = dict(classes=("disk", "square", "triangle", "star", "cross"))
train_pipeline = [
    dict(type=LoadImageFromFile),
    dict(type=LoadAnnotations, with_bbox=True),
    dict(type=Resize, scale=(64, 64), keep_ratio=True),
    dict(type=RandomFlip, prob=0.5),
    dict(type=PackDetInputs),
]
test_pipeline = [
    dict(type=LoadImageFromFile),
    dict(type=Resize, scale=(64, 64), keep_ratio=True),
    dict(type=LoadAnnotations, with_bbox=True),
    dict(
        type=PackDetInputs,
        meta_keys=("img_id", "img_path", "ori_shape", "img_shape", "scale_factor"),
    ),
]
train_dataloader.update(  # noqa: F405
    dataset=dict(
        type=CocoDataset,
        data_root=data_root,  # noqa: F405
        ann_file="annotations/instances_training.json",
        data_prefix=dict(img="images/training/"),
        metainfo=metainfo,
        pipeline=train_pipeline,
    )
)
val_dataloader.update(  # noqa: F405
    dataset=dict(
        type=CocoDataset,
        data_root=data_root,  # noqa: F405
        ann_file="annotations/instances_validation.json",
        data_prefix=dict(img="images/validation/"),
        metainfo=metainfo,
        test_mode=True,
        pipeline=test_pipeline,
    )
)
test_dataloader = val_dataloader  # noqa: F405
val_evaluator = dict(
    type=CocoMetric,
    ann_file=data_root + "/annotations/instances_validation.json",  # noqa: F405
    metric="bbox",
)
test_evaluator = val_evaluator

# By epochs of eight iterations.
train_cfg = dict(type=EpochBasedTrainLoop, max_epochs=1, val_interval=1)
default_hooks.update(visualization=dict(type=DetVisualizationHook))  # noqa: F405
visualizer = dict(
    type=DetLocalVisualizer,
    vis_backends=vis_backends,  # noqa: F405
    name="visualizer",
)
