_base_ = "./fpn_ravlt-t_8xb2-80k_ade20k-512x512.py"

checkpoint_file = (
    "https://huggingface.co/aldjalkdf/RAVLT/resolve/main/RAVLT_L.pth"  # ImageNet-1k
)

model = dict(
    backbone=dict(arch="l", init_cfg=dict(checkpoint=checkpoint_file)),
    neck=dict(in_channels=[96, 192, 448, 640]),
)
