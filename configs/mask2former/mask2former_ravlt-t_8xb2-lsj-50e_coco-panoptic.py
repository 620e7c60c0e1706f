_base_ = [
    "mmdet::mask2former/mask2former_r50_8xb2-lsj-50e_coco-panoptic.py",
    "../_base_/models/ravlt_t.py",
    "../_base_/schedules/slow_backbone.py",
]

custom_imports = dict(imports=["ravlt"])

model = dict(
    backbone=dict(_delete_=True, **_base_.ravlt_t),
    panoptic_head=dict(in_channels=[64, 128, 256, 512]),
)

optim_wrapper = dict(paramwise_cfg=dict(custom_keys=_base_.slow_backbone))
