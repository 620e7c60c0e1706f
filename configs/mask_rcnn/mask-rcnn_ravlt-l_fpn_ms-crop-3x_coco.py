_base_ = "./mask-rcnn_ravlt-s_fpn_ms-crop-3x_coco.py"

checkpoint_file = (
    "https://huggingface.co/aldjalkdf/RAVLT/resolve/main/RAVLT_L.pth"  # ImageNet-1k
)

model = dict(
    backbone=dict(arch="l", init_cfg=dict(checkpoint=checkpoint_file)),
    neck=dict(in_channels=[96, 192, 448, 640]),
)

# The paper's run of this size has one image a GPU.
train_dataloader = dict(batch_size=1)
auto_scale_lr = dict(base_batch_size=8)
