_base_ = "./cascade-mask-rcnn_ravlt-t_fpn_4conv1fc-giou_ms-crop-3x_coco.py"

checkpoint_file = (
    "https://huggingface.co/aldjalkdf/RAVLT/resolve/main/RAVLT_S.pth"  # ImageNet-1k
)

model = dict(
    backbone=dict(arch="s", init_cfg=dict(checkpoint=checkpoint_file)),
    neck=dict(in_channels=[64, 128, 320, 512]),
)
