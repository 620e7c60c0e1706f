# The 1x schedule of MMDetection (12 epochs, lr / 10 after 8 and 11, 500 iterations of
# warm-up from lr / 1000), with what RAVLT's detectors change: AdamW in fp16.
_base_ = "mmdet::_base_/schedules/schedule_1x.py"

optim_wrapper = dict(
    type="AmpOptimWrapper",
    dtype="float16",
    optimizer=dict(_delete_=True, type="AdamW", lr=1e-4, betas=(0.9, 0.999)),
    # A deviation: the paper's runs decay biases and layer scales, and those of RetinaNet
    # also norms. Decay pulls layer scales, and with them whole residual branches,
    # towards zero.
    paramwise_cfg=dict(
        norm_decay_mult=0.0,
        bias_decay_mult=0.0,
        custom_keys=dict(gamma_1=dict(decay_mult=0.0), gamma_2=dict(decay_mult=0.0)),
    ),
)
