_base_ = [
    "mmdet::dino/dino-4scale_r50_8xb2-12e_coco.py",
    "../_base_/models/ravlt_t.py",
    "../_base_/schedules/slow_backbone.py",
]

custom_imports = dict(imports=["ravlt"])

model = dict(
    backbone=dict(_delete_=True, **_base_.ravlt_t, out_indices=(1, 2, 3)),
    neck=dict(in_channels=[128, 256, 512]),
)

optim_wrapper = dict(paramwise_cfg=dict(custom_keys=_base_.slow_backbone))
