# A small all-linear Mask R-CNN that learns the built-in shapes in minutes on a CPU.
_base_ = [
    "mmdet::_base_/models/mask-rcnn_r50_fpn.py",
    "../_base_/datasets/shapes_instance.py",
    "mmdet::_base_/default_runtime.py",
    "../_base_/schedules/quickstart.py",
]
custom_imports = dict(imports=["ravlt"])
norm_cfg = dict(type="BN")

model = dict(
    data_preprocessor=dict(pad_size_divisor=32),
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
    # Batch norm everywhere: without pretraining it is what makes the heads learn fast.
    neck=dict(
        in_channels=[32, 64, 128, 160], out_channels=64, num_outs=4, norm_cfg=norm_cfg
    ),
    rpn_head=dict(
        in_channels=64,
        feat_channels=64,
        # Objects are 20 to 50 pixels wide.
        anchor_generator=dict(scales=[4], strides=[4, 8, 16, 32]),
    ),
    roi_head=dict(
        # One sample a bin: RoIAlign's backward pass is the slowest part on a CPU.
        bbox_roi_extractor=dict(out_channels=64, roi_layer=dict(sampling_ratio=1)),
        bbox_head=dict(
            type="ConvFCBBoxHead",
            num_shared_convs=2,
            num_shared_fcs=1,
            in_channels=64,
            conv_out_channels=64,
            fc_out_channels=256,
            num_classes=5,
            norm_cfg=norm_cfg,
        ),
        mask_roi_extractor=dict(out_channels=64, roi_layer=dict(sampling_ratio=1)),
        mask_head=dict(
            num_convs=2,
            in_channels=64,
            conv_out_channels=64,
            num_classes=5,
            norm_cfg=norm_cfg,
        ),
    ),
    train_cfg=dict(
        rpn=dict(sampler=dict(num=64)),
        rpn_proposal=dict(nms_pre=150, max_per_img=100),
        rcnn=dict(sampler=dict(num=32, pos_fraction=0.5)),
    ),
    test_cfg=dict(rpn=dict(nms_pre=150, max_per_img=100)),
)

train_dataloader = dict(batch_size=4)
auto_scale_lr = dict(base_batch_size=4)

default_hooks = dict(
    logger=dict(interval=20),
    checkpoint=dict(by_epoch=False, interval=500, max_keep_ckpts=1),
    visualization=dict(score_thr=0.5),
)
visualizer = dict(line_width=1)
log_processor = dict(window_size=20, by_epoch=False)
