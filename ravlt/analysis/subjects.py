"""Models to measure, by name: RAVLT, any timm model, any config of the hosts."""

import contextlib
from collections.abc import Callable

import timm
import torch
from mmengine.registry import init_default_scope
from torch import nn

from ravlt.config import is_segmentation, load_config
from ravlt.data.random_batch import make_batch
from ravlt.errors import RAVLTError
from ravlt.models import RAVLT
from ravlt.ops import plain_forms


def build_subject(name: str, size: tuple[int, int], with_cp: bool = False) -> nn.Module:
    """Build a model with random weights.

    Args:
        name: One of: ``ravlt_t`` (released attention) or ``ravlt_t:rala``, also with
            four names separated by commas; ``reference_t:rala``, the same network with
            every operator in its plain form; a timm model, built as a feature
            extractor; a config file (also ``mmdet::...``, ``mmseg::...``), whose
            detector or segmentor is built.
        size: Height and width of the images; some timm models need it.
        with_cp: Whether RAVLT recomputes activations in the backward pass.

    Raises:
        RAVLTError: If the name is unknown.
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
    with contextlib.suppress(TypeError):  # convolutional networks have no img_size
        return timm.create_model(name, features_only=True, img_size=size)
    return timm.create_model(name, features_only=True)


class _PlainForms(nn.Module):
    """Wrapper that runs a network with every operator in its plain PyTorch form."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        with plain_forms():
            return self.model(x)


def is_config(name: str) -> bool:
    """Return True if a name is the path of a config file."""
    return name.endswith(".py")


def make_step(
    model: nn.Module,
    name: str,
    batch: int,
    size: tuple[int, int],
    train: bool,
    memory_format: torch.memory_format = torch.contiguous_format,
) -> Callable[[], object]:
    """Prepare one call of a model on random pixels, in the dtype of its weights.

    Args:
        model: Result of :func:`build_subject`.
        name: Its name.
        batch: Number of images.
        size: Height and width of the images.
        train: Whether the call returns a scalar to differentiate (the loss of a host's
            model, the sum of a backbone's features) instead of the output.
        memory_format: Memory format of a backbone's input. Models of the hosts prepare
            their own.

    Returns:
        A function without arguments.
    """
    if is_config(name):
        return _host_step(model, batch, size, train)
    weight = next(model.parameters())
    x = torch.randn(batch, 3, *size, device=weight.device, dtype=weight.dtype)
    x = x.contiguous(memory_format=memory_format)
    if train:
        return lambda: sum(feature.sum() for feature in model(x))
    return lambda: model(x)


def make_run(
    step: Callable[[], object],
    model: nn.Module,
    train: bool,
    precision: torch.autocast,
) -> Callable[[], object]:
    """Prepare what a benchmark times: inference, or forward and backward pass.

    Args:
        step: Result of :func:`make_step`.
        model: The model that ``step`` calls. A training call first drops its gradients.
        train: Whether ``step`` returns a loss.
        precision: Result of :func:`autocast_to`.
    """

    def run() -> object:
        with precision:
            if not train:
                with torch.inference_mode():
                    return step()
            model.zero_grad(set_to_none=True)
            loss = step()
        loss.backward()
        return loss

    return run


def autocast_to(dtype: torch.dtype, device: torch.device) -> torch.autocast:
    """Return a context of autocast to a dtype, disabled for float32."""
    return torch.autocast(device.type, dtype, enabled=dtype != torch.float32)


def _build_config(name: str) -> nn.Module:
    cfg = load_config(name)
    init_default_scope(cfg.get("default_scope", "mmdet"))
    for part in (cfg.model, cfg.model.get("backbone") or {}):
        part.pop("init_cfg", None)  # a measurement needs no pretrained weights
    if is_segmentation(cfg):
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
        processed = model.data_preprocessor(data, train)
        if not train:
            return model(**processed, mode="predict")
        losses, _ = model.parse_losses(model(**processed, mode="loss"))
        return losses

    return step
