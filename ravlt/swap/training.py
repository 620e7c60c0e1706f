"""What else a config holds of its old backbone: pixels, learning rates, weights."""

from collections.abc import Iterator, Mapping

from mmengine.config import Config

from .changes import Change, Path

# ImageNet, RGB, on the scale of 0 to 255: what RAVLT was pretrained with.
_MEAN, _STD = [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]
_NO_DECAY = dict(gamma_1=dict(decay_mult=0.0), gamma_2=dict(decay_mult=0.0))


def training_changes(cfg: Config) -> Iterator[Change]:
    """Gives the changes outside of the model's parts."""
    yield from _pixels(cfg.get("model"), ("model",))
    if cfg.get("load_from"):
        yield Change(("load_from",), None, "holds the old backbone's weights")
    wrapper = cfg.get("optim_wrapper") or {}
    if "optimizer" in wrapper:
        yield from _learning_rates(wrapper)


def _pixels(node, path: Path) -> Iterator[Change]:
    """Channel order and statistics, wherever a preprocessor has them."""
    if not isinstance(node, Mapping):
        return
    for key, value in node.items():
        here = (*path, key)
        if key == "data_preprocessor" and value and "data_preprocessor" not in value:
            wanted = dict(mean=_MEAN, std=_STD, bgr_to_rgb=True)
            for name, good in wanted.items():
                if value.get(name) != good:
                    yield Change((*here, name), good, "ImageNet's, RGB")
            if value.get("rgb_to_bgr"):
                yield Change((*here, "rgb_to_bgr"), False, "ImageNet's, RGB")
        yield from _pixels(value, here)


def _learning_rates(wrapper: Mapping) -> Iterator[Change]:
    paramwise = dict(wrapper.get("paramwise_cfg") or {})
    path = ("optim_wrapper", "paramwise_cfg")
    constructor = str(wrapper.get("constructor", ""))
    if "Decay" in constructor:
        rate = paramwise.pop("decay_rate", 0.9)
        for key in ("decay_type", "num_layers"):
            paramwise.pop(key, None)
        paramwise["layer_decay_rate"] = rate
        yield Change(
            ("optim_wrapper", "constructor"),
            "LayerDecayOptimWrapperConstructor",
            f"{constructor} knows the old backbone only",
        )
    custom = dict(paramwise.get("custom_keys") or {}) | _NO_DECAY
    paramwise["custom_keys"] = custom
    yield Change(path, paramwise, "layer scales do not decay")
