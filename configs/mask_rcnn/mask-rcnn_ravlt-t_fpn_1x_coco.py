_base_ = [
    "mmdet::_base_/models/mask-rcnn_r50_fpn.py",
    "../_base_/models/ravlt_t.py",
    "mmdet::_base_/datasets/coco_instance.py",
    "../_base_/schedules/adamw_1x.py",
    "mmdet::_base_/default_runtime.py",
]

custom_imports = dict(imports=["ravlt"])

model = dict(
    backbone=dict(_delete_=True, **_base_.ravlt_t),
    neck=dict(in_channels=[64, 128, 256, 512]),
)

optim_wrapper = dict(loss_scale="dynamic", optimizer=dict(weight_decay=0.05))
