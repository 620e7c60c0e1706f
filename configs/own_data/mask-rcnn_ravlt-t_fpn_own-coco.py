# Mask R-CNN on a COCO file of your own: copy this file and change the first part
# (docs/own_data.md). Any other COCO config of ours may stand in _base_; then set
# num_classes of its heads below.
_base_ = "../mask_rcnn/mask-rcnn_ravlt-t_fpn_1x_coco.py"

data_root = "data/mine/"
classes = ("cat", "dog")  # in the order of "categories" in the file
train = dict(
    ann_file="annotations/instances_train.json", data_prefix=dict(img="train/")
)
val = dict(ann_file="annotations/instances_val.json", data_prefix=dict(img="val/"))
max_epochs = 24
learning_rate = 1e-4  # of 16 images a step; --auto-scale-lr adapts it
# A detector that was trained on COCO is a better start than ImageNet weights alone.
load_from = None

# Everything below follows from that.
model = dict(
    roi_head=dict(
        bbox_head=dict(num_classes=len(classes)),
        mask_head=dict(num_classes=len(classes)),
    )
)
dataset = dict(data_root=data_root, metainfo=dict(classes=classes))
train_dataloader = dict(dataset=dict(**dataset, **train))
val_dataloader = dict(dataset=dict(**dataset, **val))
test_dataloader = val_dataloader
val_evaluator = dict(ann_file=data_root.rstrip("/") + "/" + val["ann_file"])
test_evaluator = val_evaluator
del dataset, train, val

optim_wrapper = dict(optimizer=dict(lr=learning_rate))
# The first epoch warms up, however long it is; the recipe's 500 iterations may be more
# than a small data set has in all.
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
train_cfg = dict(max_epochs=max_epochs)
