# Swin's config has the multi-scale crops and the 36 epochs that RAVLT uses.
_base_ = [
    "mmdet::swin/mask-rcnn_swin-t-p4-w7_fpn_ms-crop-3x_coco.py",
    "../_base_/models/ravlt_t.py",
    "../_base_/schedules/no_decay.py",
]

custom_imports = dict(imports=["ravlt"])

model = dict(
    backbone=dict(_delete_=True, **_base_.ravlt_t),
    neck=dict(in_channels=[64, 128, 256, 512]),
)

optim_wrapper = dict(
    _delete_=True,
    type="AmpOptimWrapper",
    dtype="float16",
    loss_scale="dynamic",
    optimizer=dict(type="AdamW", lr=1e-4, betas=(0.9, 0.999), weight_decay=0.05),
    paramwise_cfg=_base_.no_decay,
)

param_scheduler = [
    dict(type="LinearLR", start_factor=0.001, by_epoch=False, begin=0, end=500),
    dict(type="MultiStepLR", begin=0, end=36, milestones=[27, 33], gamma=0.1),
]
