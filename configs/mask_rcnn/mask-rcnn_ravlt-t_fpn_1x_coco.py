_base_ = [
    "mmdet::_base_/models/mask-rcnn_r50_fpn.py",
    "mmdet::_base_/datasets/coco_instance.py",
    "../_base_/schedules/adamw_1x.py",
    "mmdet::_base_/default_runtime.py",
]

custom_imports = dict(imports=["ravlt"])
checkpoint_file = (
    "https://huggingface.co/aldjalkdf/RAVLT/resolve/main/RAVLT_T.pth"  # ImageNet-1k
)

model = dict(
    backbone=dict(
        _delete_=True,
        type="RAVLT",
        arch="t",
        norm_cfg=dict(type="SyncBN", requires_grad=True),
        init_cfg=dict(type="Pretrained", checkpoint=checkpoint_file),
    ),
    neck=dict(in_channels=[64, 128, 256, 512]),
)

optim_wrapper = dict(loss_scale="dynamic", optimizer=dict(weight_decay=0.05))
