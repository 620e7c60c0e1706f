# Both options: files in _base_ cannot each have custom_hooks.
_base_ = "./ema.py"

custom_hooks = [*_base_.custom_hooks, dict(type="ClipGradHook", max_norm=1.0)]
