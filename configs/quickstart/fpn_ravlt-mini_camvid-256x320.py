# CamVid at 480 x 360 with 11 classes (367 images to train, 101 to evaluate), from
# scratch. Give the folder with --data-root.
_base_ = "./fpn_ravlt-mini_shapes.py"

data_root = "data/camvid"
crop_size = (256, 320)
metainfo = dict(
    classes=(
        "sky",
        "building",
        "pole",
        "road",
        "pavement",
        "tree",
        "signsymbol",
        "fence",
        "car",
        "pedestrian",
        "bicyclist",
    ),
    palette=[
        [128, 128, 128],
        [128, 0, 0],
        [192, 192, 128],
        [128, 64, 128],
        [60, 40, 222],
        [128, 128, 0],
        [192, 128, 128],
        [64, 64, 128],
        [64, 0, 128],
        [64, 64, 0],
        [0, 128, 192],
    ],
)

model = dict(
    data_preprocessor=dict(size=crop_size),
    decode_head=dict(num_classes=11),
)

train_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="LoadAnnotations"),
    dict(
        type="RandomResize", scale=(480, 360), ratio_range=(0.75, 1.75), keep_ratio=True
    ),
    dict(type="RandomCrop", crop_size=crop_size, cat_max_ratio=0.75),
    dict(type="RandomFlip", prob=0.5),
    dict(type="PhotoMetricDistortion"),
    dict(type="PackSegInputs"),
]
test_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="LoadAnnotations"),
    dict(type="PackSegInputs"),
]
dataset = dict(data_root=data_root, metainfo=metainfo, reduce_zero_label=False)
train_dataloader = dict(dataset=dict(**dataset, pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(**dataset, pipeline=test_pipeline))
test_dataloader = val_dataloader
del dataset

train_cfg = dict(val_interval=300)
default_hooks = dict(checkpoint=dict(interval=300))
