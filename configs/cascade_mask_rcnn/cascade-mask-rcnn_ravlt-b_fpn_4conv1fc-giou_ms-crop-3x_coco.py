_base_ = "./cascade-mask-rcnn_ravlt-s_fpn_4conv1fc-giou_ms-crop-3x_coco.py"

checkpoint_file = (
    "https://huggingface.co/aldjalkdf/RAVLT/resolve/main/RAVLT_B.pth"  # ImageNet-1k
)

model = dict(
    backbone=dict(arch="b", init_cfg=dict(checkpoint=checkpoint_file)),
    neck=dict(in_channels=[96, 192, 384, 512]),
)
