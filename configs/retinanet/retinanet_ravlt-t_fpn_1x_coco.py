_base_ = [
    "mmdet::_base_/models/retinanet_r50_fpn.py",
    "../_base_/models/ravlt_t.py",
    "mmdet::_base_/datasets/coco_detection.py",
    "../_base_/schedules/adamw_1x.py",
    "mmdet::_base_/default_runtime.py",
]

custom_imports = dict(imports=["ravlt"])

model = dict(
    # The pyramid begins at stride 8. Taking stages 2 to 4 only, rather than all four
    # and start_level=1, leaves no norm without a gradient, at which DDP would stop.
    backbone=dict(_delete_=True, **_base_.ravlt_t, out_indices=(1, 2, 3)),
    neck=dict(in_channels=[128, 256, 512], start_level=0),
)

# The recipe keeps one loss scale.
optim_wrapper = dict(loss_scale=512.0, optimizer=dict(weight_decay=1e-4))
