"""What else a config holds of its old backbone: pixels, weights, learning rates."""

from collections.abc import Iterator, Mapping, Sequence

from mmengine.config import Config

from ravlt.config import type_name

from .changes import Change, Path
from .sites import Site

# ImageNet, RGB, on the scale of 0 to 255: what RAVLT was pretrained with.
_PIXELS = dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375])
# For mmpretrain, whose preprocessors name the order of channels otherwise.
_CLASSIFIERS = ("ReIDDataPreprocessor", "ClsDataPreprocessor")
# Keys of RAVLT's parameters. mmengine takes the longest one that is part of a name, and
# of equally long ones the first in the alphabet: these come before 'backbone'.
_LAYER_SCALES = (".gamma_1", ".gamma_2")
_NORMS = (
    "patch_embed.proj.1",
    "patch_embed.proj.4",
    "patch_embed.proj.7",
    ".norm1.norm",
    ".norm2.norm",
    "downsample.norm",
    "extra_norms",
)
_LAYER_SCALE = "backbone.layers.0.blocks.0.gamma_1"
_DECAY = "LayerDecayOptimWrapperConstructor"


def pixel_changes(node: Mapping, path: Path) -> Iterator[Change]:
    """Gives channel order and statistics, wherever a preprocessor has them.

    Args:
        node: Config of the model, or of a part.
        path: Where it is.
    """
    for key, value in node.items():
        if not isinstance(value, Mapping):
            continue
        here = (*path, key)
        if key == "data_preprocessor" and "data_preprocessor" not in value:
            yield from _preprocessor_changes(value, here)
        yield from pixel_changes(value, here)


def weight_changes(cfg: Config, sites: Sequence[Site]) -> Iterator[Change]:
    """Gives what must not be loaded any more: weights of the old backbone.

    Args:
        cfg: The config.
        sites: Where its backbones are.
    """
    why = "holds the old backbone's weights"
    if cfg.get("load_from"):
        yield Change(("load_from",), None, why)
    seen = set()
    for site in sites:
        if site.owner.get("pretrained"):
            yield Change((*site.path, "pretrained"), None, why)
        # Weights of a whole model, of the backbone's or of one around it.
        node = cfg
        for i, key in enumerate(site.path):
            node = node[key]
            path = site.path[: i + 1]
            init = node.get("init_cfg") if isinstance(node, Mapping) else None
            pretrained = isinstance(init, Mapping) and type_name(init) == "Pretrained"
            if pretrained and path not in seen:
                seen.add(path)
                yield Change((*path, "init_cfg"), None, why)


def optimizer_changes(
    cfg: Config, old: Sequence[str], new: Sequence[str]
) -> Iterator[Change]:
    """Gives learning rates and decay that named the old backbone's parameters.

    Args:
        cfg: The config.
        old: Names of the old backbone's parameters.
        new: Names of RAVLT's.
    """
    wrapper = cfg.get("optim_wrapper") or {}
    if "optimizer" not in wrapper:
        return
    path = ("optim_wrapper",)
    paramwise = wrapper.get("paramwise_cfg") or {}
    keys = dict(paramwise.get("custom_keys") or {})
    kept = {k: v for k, v in keys.items() if _names(k, new) or not _names(k, old)}
    gone = {k: v for k, v in keys.items() if k not in kept}
    norms = any("norm" in k and v.get("decay_mult") == 0 for k, v in gone.items())
    exempt = _exempt(kept, _LAYER_SCALES + _NORMS * norms)
    why = f"layer scales{' and norms' * norms} do not decay"
    if gone:
        why += "; other keys named parameters of the old backbone"
    constructor = type_name(wrapper, "constructor")
    if "Decay" in constructor and constructor != _DECAY:
        known = f"{constructor} knows other backbones only"
        yield Change((*path, "constructor"), _DECAY, known)
        settings = {
            k: v
            for k, v in paramwise.items()
            if k not in ("decay_rate", "decay_type", "num_layers")
        }
        settings.setdefault("layer_decay_rate", paramwise.get("decay_rate", 0.9))
        settings["custom_keys"] = kept | exempt
        yield Change((*path, "paramwise_cfg"), settings, why)
    elif not paramwise:
        settings = dict(custom_keys=exempt)
        yield Change((*path, "paramwise_cfg"), settings, why)
    elif not keys or gone:
        place = (*path, "paramwise_cfg", "custom_keys")
        yield Change(place, kept | exempt, why)
    else:
        for key, value in exempt.items():
            place = (*path, "paramwise_cfg", "custom_keys", key)
            yield Change(place, value, why)


def optimizer_warnings(cfg: Config) -> list[str]:
    """Says where a schedule was tuned for another optimizer than RAVLT's recipes."""
    optimizer = (cfg.get("optim_wrapper") or {}).get("optimizer") or {}
    kind, rate = type_name(optimizer), optimizer.get("lr")
    if kind in ("", "AdamW", "Adam"):
        return []
    return [
        f"optim_wrapper.optimizer is {kind} with lr={rate}, tuned for the old "
        f"backbone; RAVLT's recipes use AdamW with lr=1e-4 for 16 images."
    ]


def _preprocessor_changes(value: Mapping, path: Path) -> Iterator[Change]:
    wanted = dict(_PIXELS, bgr_to_rgb=True)
    if type_name(value) in _CLASSIFIERS:
        if "mean" not in value:  # its input has been normalised before
            return
        wanted = dict(_PIXELS, to_rgb=True)
    if len(value.get("mean") or _PIXELS["mean"]) != 3:
        return  # no RGB images
    for name, good in wanted.items():
        if value.get(name) != good:
            yield Change((*path, name), good, "ImageNet's statistics, RGB")
    if value.get("rgb_to_bgr"):
        yield Change((*path, "rgb_to_bgr"), False, "ImageNet's statistics, RGB")


def _names(key: str, parameters: Sequence[str]) -> bool:
    return any(key in f"backbone.{name}" for name in parameters)


def _exempt(keys: Mapping, names: Sequence[str]) -> dict[str, dict]:
    """No decay for some of RAVLT's parameters, at the learning rate of the others."""
    first = next(
        (k for k in sorted(sorted(keys), key=len, reverse=True) if k in _LAYER_SCALE),
        None,
    )
    settings = dict(keys.get(first, {})) | dict(decay_mult=0.0)
    return {name: dict(settings) for name in names}
