# Swin's config has what a pretrained transformer changes in RTMDet-L: group norm in neck
# and head, a third of the epochs, a quarter of the learning rate.
_base_ = [
    "mmdet::rtmdet/rtmdet_l_swin_b_4xb32-100e_coco.py",
    "../_base_/models/ravlt_t.py",
    "../_base_/schedules/no_decay.py",
]

custom_imports = dict(imports=["ravlt"])

model = dict(
    backbone=dict(_delete_=True, **_base_.ravlt_t, out_indices=(1, 2, 3)),
    neck=dict(in_channels=[128, 256, 512]),
)

optim_wrapper = dict(paramwise_cfg=_base_.no_decay)
# MMDetection's says 16, of the schedule that it inherits.
auto_scale_lr = dict(base_batch_size=128)
