# The same head on a ResNet-18 from scratch, for comparison.
_base_ = "./mask-rcnn_ravlt-mini_fpn_shapes.py"

model = dict(
    backbone=dict(_delete_=True, type="ResNet", depth=18, norm_cfg=dict(type="BN")),
    neck=dict(in_channels=[64, 128, 256, 512]),
)
