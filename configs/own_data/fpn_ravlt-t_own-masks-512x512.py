# Semantic FPN on label maps of your own: copy this file and change the first part
# (docs/own_data.md). Any other ADE20K config of ours may stand in _base_; UperNet has an
# auxiliary_head, whose num_classes is to be set as well.
_base_ = "../sem_fpn/fpn_ravlt-t_8xb2-80k_ade20k-512x512.py"

data_root = "data/mine"  # images/{train,val}/NAME.jpg, masks/{train,val}/NAME.png
img_suffix, mask_suffix = ".jpg", ".png"
classes = ("background", "road", "car")  # what the values 0, 1, 2, ... stand for
palette = []  # random colors in pictures; or one [R, G, B] a class
first_value = 0  # 1 if the value 0 means "not labelled" and classes start at 1
image_scale = (2048, 512)  # largest long side, short side
crop_size = (512, 512)
max_epochs = 50
learning_rate = 1e-4  # of 16 images a step; --auto-scale-lr adapts it
# A segmentor that was trained on ADE20K is a better start than ImageNet weights alone.
load_from = None

# Everything below follows from that.
model = dict(
    data_preprocessor=dict(size=crop_size), decode_head=dict(num_classes=len(classes))
)
labels = dict(type="LoadAnnotations", reduce_zero_label=first_value == 1)
train_pipeline = [
    dict(type="LoadImageFromFile"),
    labels,
    dict(
        type="RandomResize", scale=image_scale, ratio_range=(0.5, 2.0), keep_ratio=True
    ),
    dict(type="RandomCrop", crop_size=crop_size, cat_max_ratio=0.75),
    dict(type="RandomFlip", prob=0.5),
    dict(type="PhotoMetricDistortion"),
    dict(type="PackSegInputs"),
]
test_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="Resize", scale=image_scale, keep_ratio=True),
    labels,  # after Resize: predictions are compared at the size of the file
    dict(type="PackSegInputs"),
]
dataset = dict(
    type="BaseSegDataset",
    data_root=data_root,
    metainfo=dict(classes=classes, palette=palette),
    img_suffix=img_suffix,
    seg_map_suffix=mask_suffix,
    reduce_zero_label=first_value == 1,
)
train_dataloader = dict(
    sampler=dict(type="DefaultSampler"),
    dataset=dict(
        **dataset,
        data_prefix=dict(img_path="images/train", seg_map_path="masks/train"),
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(
    dataset=dict(
        **dataset,
        data_prefix=dict(img_path="images/val", seg_map_path="masks/val"),
        pipeline=test_pipeline,
    )
)
test_dataloader = val_dataloader
del dataset, labels

optim_wrapper = dict(optimizer=dict(lr=learning_rate))
# The first epoch warms up, however long it is.
param_scheduler = [
    dict(
        type="LinearLR",
        start_factor=0.01,
        begin=0,
        end=1,
        convert_to_iter_based=True,
    ),
    dict(
        type="CosineAnnealingLR",
        begin=1,
        end=max_epochs,
        T_max=max_epochs - 1,
        eta_min_ratio=0.01,
        convert_to_iter_based=True,
    ),
]
train_cfg = dict(
    _delete_=True, type="EpochBasedTrainLoop", max_epochs=max_epochs, val_interval=5
)
log_processor = dict(by_epoch=True)
default_hooks = dict(
    logger=dict(log_metric_by_epoch=True), checkpoint=dict(by_epoch=True, interval=5)
)
