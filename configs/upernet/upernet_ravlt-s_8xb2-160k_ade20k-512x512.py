_base_ = [
    "mmseg::_base_/models/upernet_r50.py",
    "../_base_/datasets/ade20k_8xb2.py",
    "mmseg::_base_/schedules/schedule_160k.py",
    "../_base_/schedules/no_decay.py",
    "mmseg::_base_/default_runtime.py",
]

custom_imports = dict(imports=["ravlt"])
checkpoint_file = (
    "https://huggingface.co/aldjalkdf/RAVLT/resolve/main/RAVLT_S.pth"  # ImageNet-1k
)

model = dict(
    data_preprocessor=dict(size=(512, 512)),
    pretrained=None,
    backbone=dict(
        _delete_=True,
        type="RAVLT",
        arch="s",
        norm_cfg=dict(type="SyncBN", requires_grad=True),
        init_cfg=dict(type="Pretrained", checkpoint=checkpoint_file),
    ),
    decode_head=dict(in_channels=[64, 128, 320, 512], num_classes=150),
    auxiliary_head=dict(in_channels=320, num_classes=150),
)

# The authors warn that fp16 may meet NaN here; if it does, train with
# --amp-dtype bfloat16.
optim_wrapper = dict(
    _delete_=True,
    type="AmpOptimWrapper",
    dtype="float16",
    loss_scale=512.0,
    optimizer=dict(type="AdamW", lr=6e-5, betas=(0.9, 0.999), weight_decay=0.01),
    paramwise_cfg=_base_.no_decay,
)

param_scheduler = [
    dict(type="LinearLR", start_factor=1e-6, by_epoch=False, begin=0, end=1500),
    dict(
        type="PolyLR",
        power=1.0,
        eta_min=0.0,
        begin=1500,
        end=160000,
        by_epoch=False,
    ),
]
