# The 1x schedule of MMDetection (12 epochs, lr / 10 after 8 and 11, 500 iterations of
# warm-up from lr / 1000), with what RAVLT's detectors change: AdamW in fp16.
_base_ = ["mmdet::_base_/schedules/schedule_1x.py", "./no_decay.py"]

optim_wrapper = dict(
    type="AmpOptimWrapper",
    dtype="float16",
    optimizer=dict(_delete_=True, type="AdamW", lr=1e-4, betas=(0.9, 0.999)),
    paramwise_cfg=_base_.no_decay,
)
