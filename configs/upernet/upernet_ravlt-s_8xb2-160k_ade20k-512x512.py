_base_ = "./upernet_ravlt-t_8xb2-160k_ade20k-512x512.py"

checkpoint_file = (
    "https://huggingface.co/aldjalkdf/RAVLT/resolve/main/RAVLT_S.pth"  # ImageNet-1k
)

model = dict(
    backbone=dict(arch="s", init_cfg=dict(checkpoint=checkpoint_file)),
    decode_head=dict(in_channels=[64, 128, 320, 512]),
    auxiliary_head=dict(in_channels=320),
)
