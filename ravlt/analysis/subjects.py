"""What can be measured, by name: RAVLT, any timm model, any config of the hosts."""

import contextlib
from collections.abc import Callable

import timm
import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope
from torch import nn

from ravlt.errors import RAVLTError
from ravlt.models import RAVLT
from ravlt.ops import plain_forms

from .samples import make_batch


def build_subject(name: str, size: tuple[int, int], with_cp: bool = False) -> nn.Module:
    """Builds a model with random weights.

    Args:
        name: ``ravlt_t`` (released attention) or ``ravlt_t:rala``, likewise with four
            names between commas; ``reference_t:rala``, the same network with every
            operator in its plain form; a timm model, of which the features are
            computed; or a config file (also ``mmdet::...``, ``mmseg::...``), of which
            the whole model is.
        size: Height and width of the images, which some timm models must know.
        with_cp: Whether RAVLT recomputes activations in the backward pass.

    Raises:
        RAVLTError: If nothing goes by that name.
    """
    kind, _, rest = name.partition("_")
    if kind in ("ravlt", "reference"):
        arch, _, attention = rest.partition(":")
        kwargs = {}
        if attention:
            names = attention.split(",")
            kwargs["attn_types"] = names[0] if len(names) == 1 else names
        if kind == "reference":
            model = RAVLT(arch, tile=0, recompute_ffn=False, with_cp=with_cp, **kwargs)
            return _PlainForms(model)
        return RAVLT(arch, with_cp=with_cp, **kwargs)
    if is_config(name):
        return _build_config(name)
    if not timm.is_model(name):
        raise RAVLTError(
            f"'{name}' is no config file, no timm model and no RAVLT; use a path that "
            f"ends in .py, a name of timm.list_models(), or ravlt_SIZE[:ATTENTION]."
        )
    with contextlib.suppress(TypeError):  # convolutional networks take any size
        return timm.create_model(name, features_only=True, img_size=size)
    return timm.create_model(name, features_only=True)


class _PlainForms(nn.Module):
    """A network whose operators run in their plain PyTorch form."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        with plain_forms():
            return self.model(x)


def is_config(name: str) -> bool:
    """Tells configs from names."""
    return name.endswith(".py")


def make_step(
    model: nn.Module, name: str, batch: int, size: tuple[int, int], train: bool
) -> Callable[[], object]:
    """Prepares one call of a model on random pixels.

    Args:
        model: What :func:`build_subject` built.
        name: Its name.
        batch: Images.
        size: Their height and width.
        train: Whether to give a scalar to differentiate (the loss of a host's model,
            the sum of a backbone's features) in place of the output.

    Returns:
        A function without arguments.
    """
    device = next(model.parameters()).device
    if is_config(name):
        return _host_step(model, batch, size, train)
    x = torch.randn(batch, 3, *size, device=device)
    if train:
        return lambda: sum(feature.sum() for feature in model(x))
    return lambda: model(x)


def _build_config(name: str) -> nn.Module:
    from ravlt.engine.config import load_config  # the hosts are needed here only

    cfg: Config = load_config(name)
    init_default_scope(cfg.get("default_scope", "mmdet"))
    for part in (cfg.model, cfg.model.get("backbone") or {}):
        part.pop("init_cfg", None)  # nothing is downloaded to be timed
    if cfg.default_scope == "mmseg":
        from mmseg.registry import MODELS
    else:
        from mmdet.registry import MODELS
    return MODELS.build(cfg.model)


def _host_step(
    model: nn.Module, batch: int, size: tuple[int, int], train: bool
) -> Callable[[], object]:
    device = next(model.parameters()).device
    data = make_batch(model, batch, size, train)
    data["inputs"] = [image.to(device) for image in data["inputs"]]

    def step() -> object:
        ready = model.data_preprocessor(data, train)
        if not train:
            return model(**ready, mode="predict")
        losses, _ = model.parse_losses(model(**ready, mode="loss"))
        return losses

    return step
