# A few photographs of fruits and nuts (12 to train, 6 to evaluate), from scratch. Give
# the folder with --data-root.
_base_ = "./mask-rcnn_ravlt-mini_fpn_shapes.py"

data_root = "data/fruits_nuts"
metainfo = dict(classes=("date", "fig", "hazelnut"))
scale = (480, 360)

model = dict(
    neck=dict(num_outs=5),
    # Objects are 30 to 200 pixels wide at this scale.
    rpn_head=dict(anchor_generator=dict(strides=[4, 8, 16, 32, 64])),
    roi_head=dict(bbox_head=dict(num_classes=3), mask_head=dict(num_classes=3)),
)

train_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="LoadAnnotations", with_bbox=True, with_mask=True),
    dict(type="RandomResize", scale=scale, ratio_range=(0.7, 1.5), keep_ratio=True),
    dict(type="RandomCrop", crop_size=(360, 480), allow_negative_crop=True),
    dict(
        type="RandomFlip",
        prob=[0.25, 0.25, 0.25],
        direction=["horizontal", "vertical", "diagonal"],
    ),
    dict(type="PhotoMetricDistortion"),
    dict(type="PackDetInputs"),
]
test_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="Resize", scale=scale, keep_ratio=True),
    dict(type="LoadAnnotations", with_bbox=True, with_mask=True),
    dict(
        type="PackDetInputs",
        meta_keys=("img_id", "img_path", "ori_shape", "img_shape", "scale_factor"),
    ),
]
train_dataloader = dict(
    batch_size=2,
    dataset=dict(
        data_root=data_root,
        ann_file="annotations/instances_train.json",
        data_prefix=dict(img="train/"),
        metainfo=metainfo,
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(
    batch_size=1,
    dataset=dict(
        data_root=data_root,
        ann_file="annotations/instances_val.json",
        data_prefix=dict(img="val/"),
        metainfo=metainfo,
        pipeline=test_pipeline,
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(ann_file=data_root + "/annotations/instances_val.json")
test_evaluator = val_evaluator

train_cfg = dict(val_interval=300)
default_hooks = dict(checkpoint=dict(interval=300))
auto_scale_lr = dict(base_batch_size=2)
visualizer = dict(line_width=2)
