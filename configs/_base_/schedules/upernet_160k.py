# The paper's schedule of UperNet, for 16 images.
_base_ = ["mmseg::_base_/schedules/schedule_160k.py", "./no_decay.py"]

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
