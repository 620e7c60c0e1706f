# The paper's schedule of Semantic FPN, for 16 images.
_base_ = ["mmseg::_base_/schedules/schedule_80k.py", "./no_decay.py"]

optim_wrapper = dict(
    _delete_=True,
    type="OptimWrapper",
    optimizer=dict(type="AdamW", lr=1e-4, weight_decay=1e-4),
    paramwise_cfg=_base_.no_decay,
)

param_scheduler = [
    dict(type="PolyLR", power=0.9, eta_min=1e-6, begin=0, end=80000, by_epoch=False)
]
