# Add this file to _base_: each process holds a part of weights, gradients and optimizer
# (FSDP), and checkpoints are folders (docs/distributed.md).
runner_type = "FlexibleRunner"
strategy = dict(
    type="ShardedStrategy",
    model_wrapper=dict(auto_wrap_policy=dict(type="wrap_blocks")),
)
