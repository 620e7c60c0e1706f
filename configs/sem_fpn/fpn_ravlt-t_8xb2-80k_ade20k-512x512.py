_base_ = [
    "mmseg::_base_/models/fpn_r50.py",
    "../_base_/datasets/ade20k_8xb2.py",
    "mmseg::_base_/schedules/schedule_80k.py",
    "../_base_/schedules/no_decay.py",
    "mmseg::_base_/default_runtime.py",
]

custom_imports = dict(imports=["ravlt"])
checkpoint_file = (
    "https://huggingface.co/aldjalkdf/RAVLT/resolve/main/RAVLT_T.pth"  # ImageNet-1k
)

model = dict(
    data_preprocessor=dict(size=(512, 512)),
    pretrained=None,
    backbone=dict(
        _delete_=True,
        type="RAVLT",
        arch="t",
        norm_cfg=dict(type="SyncBN", requires_grad=True),
        init_cfg=dict(type="Pretrained", checkpoint=checkpoint_file),
    ),
    neck=dict(in_channels=[64, 128, 256, 512]),
    decode_head=dict(num_classes=150),
)

optim_wrapper = dict(
    _delete_=True,
    type="OptimWrapper",
    optimizer=dict(type="AdamW", lr=1e-4, weight_decay=1e-4),
    paramwise_cfg=_base_.no_decay,
)

param_scheduler = [
    dict(type="PolyLR", power=0.9, eta_min=1e-6, begin=0, end=80000, by_epoch=False)
]
