# A small all-linear Semantic FPN that learns the built-in shapes in minutes on a CPU.
_base_ = [
    "mmseg::_base_/models/fpn_r50.py",
    "../_base_/datasets/shapes_semantic.py",
    "mmseg::_base_/default_runtime.py",
    "../_base_/schedules/quickstart.py",
]
custom_imports = dict(imports=["ravlt"])
norm_cfg = dict(type="BN")

model = dict(
    data_preprocessor=dict(size=(128, 160)),
    pretrained=None,
    backbone=dict(
        _delete_=True,
        type="RAVLT",
        arch=dict(
            embed_dims=(32, 64, 128, 160), depths=(1, 2, 3, 1), num_heads=(1, 2, 4, 5)
        ),
        attn_types="rala",
        # So narrow, and from scratch: the released 0.02 would start near identity.
        init_cfg=dict(
            type="Kaiming", layer="Conv2d", mode="fan_in", nonlinearity="linear"
        ),
    ),
    # Batch norm everywhere: without pretraining it is what makes the head learn fast.
    neck=dict(in_channels=[32, 64, 128, 160], out_channels=96, norm_cfg=norm_cfg),
    decode_head=dict(
        in_channels=[96, 96, 96, 96],
        channels=64,
        num_classes=6,
        dropout_ratio=0,
        norm_cfg=norm_cfg,
    ),
)
# Lower rates find the objects and are slow to begin to tell their classes apart.
optim_wrapper = dict(optimizer=dict(lr=4e-3))

default_hooks = dict(
    logger=dict(type="LoggerHook", interval=20, log_metric_by_epoch=False),
    checkpoint=dict(
        type="CheckpointHook", by_epoch=False, interval=500, max_keep_ckpts=1
    ),
    visualization=dict(type="SegVisualizationHook"),
)
