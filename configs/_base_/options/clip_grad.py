# Add this file to _base_: gradients are clipped to a norm of 1.
custom_hooks = [dict(type="ClipGradHook", max_norm=1.0)]
