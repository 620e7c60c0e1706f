_base_ = "./upernet_ravlt-s_8xb2-160k_ade20k-512x512.py"

checkpoint_file = (
    "https://huggingface.co/aldjalkdf/RAVLT/resolve/main/RAVLT_L.pth"  # ImageNet-1k
)

model = dict(
    backbone=dict(arch="l", init_cfg=dict(checkpoint=checkpoint_file)),
    decode_head=dict(in_channels=[96, 192, 448, 640]),
    auxiliary_head=dict(in_channels=448),
)
