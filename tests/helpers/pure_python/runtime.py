# What both hosts' configs in pure Python inherit: every type is a class, no scope.
from mmengine.dataset import DefaultSampler
from mmengine.hooks import (
    CheckpointHook,
    DistSamplerSeedHook,
    IterTimerHook,
    LoggerHook,
    ParamSchedulerHook,
)
from mmengine.optim import AmpOptimWrapper
from mmengine.optim.scheduler import ConstantLR
from mmengine.runner import IterBasedTrainLoop, TestLoop, ValLoop
from mmengine.visualization import LocalVisBackend
from torch.optim import AdamW

default_scope = None
default_hooks = dict(
    timer=dict(type=IterTimerHook),
    logger=dict(type=LoggerHook, interval=1),
    param_scheduler=dict(type=ParamSchedulerHook),
    checkpoint=dict(type=CheckpointHook, interval=2, by_epoch=False),
    sampler_seed=dict(type=DistSamplerSeedHook),
)
env_cfg = dict(dist_cfg=dict(backend="nccl"))
vis_backends = [dict(type=LocalVisBackend)]
randomness = dict(seed=0)
resume = False
bad_losses = dict(skip=2)

train_cfg = dict(type=IterBasedTrainLoop, max_iters=4, val_interval=2)
val_cfg = dict(type=ValLoop)
test_cfg = dict(type=TestLoop)
optim_wrapper = dict(
    type=AmpOptimWrapper, dtype="bfloat16", optimizer=dict(type=AdamW, lr=1e-3)
)
param_scheduler = [dict(type=ConstantLR, factor=1.0, by_epoch=False, begin=0, end=9)]

data_root = "data/shapes"
train_dataloader = dict(
    batch_size=2, num_workers=0, sampler=dict(type=DefaultSampler, shuffle=True)
)
val_dataloader = dict(
    batch_size=2, num_workers=0, sampler=dict(type=DefaultSampler, shuffle=False)
)
