# From scratch in minutes: a high learning rate, and cosine decay to nothing.
_base_ = "./no_decay.py"

max_iters = 1500
optim_wrapper = dict(
    type="OptimWrapper",
    optimizer=dict(type="AdamW", lr=3e-3, weight_decay=0.05),
    clip_grad=dict(max_norm=10),
    paramwise_cfg=_base_.no_decay,
)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.01, by_epoch=False, begin=0, end=100),
    dict(
        type="CosineAnnealingLR", by_epoch=False, begin=100, end=max_iters, eta_min=1e-5
    ),
]
train_cfg = dict(
    type="IterBasedTrainLoop", max_iters=max_iters, val_interval=max_iters // 2
)
val_cfg = dict(type="ValLoop")
test_cfg = dict(type="TestLoop")
auto_scale_lr = dict(enable=False, base_batch_size=8)
