# Add this file to _base_: an exponential moving average of the weights (momentum 2e-4
# an iteration) is evaluated and saved in their place.
custom_hooks = [
    dict(
        type="EMAHook",
        ema_type="ExponentialMovingAverage",
        momentum=0.0002,
        update_buffers=True,
    )
]
