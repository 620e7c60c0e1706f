# The same head and recipe on a ResNet-18 from scratch, for comparison: as many
# iterations as take the time of the 1500 with RAVLT.
_base_ = "./mask-rcnn_ravlt-mini_fpn_shapes.py"

model = dict(
    backbone=dict(_delete_=True, type="ResNet", depth=18, norm_cfg=dict(type="BN")),
    neck=dict(in_channels=[64, 128, 256, 512]),
)

max_iters = 1200
train_cfg = dict(max_iters=max_iters, val_interval=max_iters // 2)
param_scheduler = _base_.param_scheduler
param_scheduler[1].end = max_iters
