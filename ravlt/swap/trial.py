"""One training and one inference step of a config's model, on random images."""

import contextlib
import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from mmengine.config import Config
from mmengine.logging import MessageHub, MMLogger
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import MODELS, DefaultScope
from torch import nn

from ravlt.config import find_scope, type_name
from ravlt.data.random_batch import make_batch
from ravlt.errors import RAVLTError
from ravlt.models import RAVLT


@dataclass
class Trial:
    """What came of it.

    Args:
        loss: The loss; None of a model that does not train (some trackers).
        idle: Parameters of RAVLT without a gradient, at which DDP would stop.
    """

    loss: float | None
    idle: list[str]


def try_model(cfg: Config, sides: Sequence[int] = (256,)) -> Trial:
    """Builds the model of a config without weights, predicts, trains a step.

    Args:
        cfg: Config of mmdet or mmseg.
        sides: Of the square images; another is tried where one fails, since some
            models need larger images.

    Raises:
        RAVLTError: If the loss or a gradient of the backbone is not finite.
        Exception: Whatever the model raises with images of the last size.
    """
    with DefaultScope.overwrite_default_scope(find_scope(cfg) or "mmdet"):
        trial = _try(cfg.model, sides)
    # DDP then looks for parameters without a gradient.
    return replace(trial, idle=[]) if cfg.get("find_unused_parameters") else trial


def _try(model_cfg: Mapping, sides: Sequence[int]) -> Trial:
    for clock in ("iter", "epoch"):  # some losses depend on it; a runner sets it
        MessageHub.get_current_instance().update_info(clock, 0)
    model_cfg = copy.deepcopy(model_cfg)
    _make_local(model_cfg)
    model = revert_sync_batchnorm(MODELS.build(model_cfg))
    init_weights_quietly(model)
    *smaller, last = sides
    for side in smaller:
        with contextlib.suppress(Exception):
            return _run(model, (side, side))
        model.zero_grad()
    return _run(model, (last, last))


def _run(model: nn.Module, size: tuple[int, int]) -> Trial:
    model.eval()
    with torch.no_grad():
        data = make_batch(model, 1, size, train=False)
        model(**model.data_preprocessor(data, False), mode="predict")
    return _train(model, size)


def _train(model: nn.Module, size: tuple[int, int]) -> Trial:
    model.train()
    data = model.data_preprocessor(make_batch(model, 2, size, train=True), True)
    try:
        losses = model(**data, mode="loss")
    except NotImplementedError:
        return Trial(None, [])
    loss, _ = model.parse_losses(losses)
    loss.backward()
    idle, broken = [], [] if loss.isfinite() else ["the loss"]
    # The teacher of a semi-supervised detector has gradients turned off.
    for part in (part for part in model.modules() if isinstance(part, RAVLT)):
        for name, parameter in part.named_parameters():
            if parameter.requires_grad and parameter.grad is None:
                idle.append(name)
            elif parameter.requires_grad and not parameter.grad.isfinite().all():
                broken.append(name)
    if broken:
        raise RAVLTError(f"In one training step {broken[0]} is not finite.")
    return Trial(loss.item(), idle)


def init_weights_quietly(model: nn.Module) -> None:
    """Initialize a model as a runner does, without a line for every parameter."""
    logger = MMLogger.get_current_instance()
    level = logger.level
    logger.setLevel("WARNING")
    try:
        model.init_weights()
    finally:
        logger.setLevel(level)


def _make_local(node) -> None:
    """Takes out what needs files to load, or a group of processes to be built."""
    if isinstance(node, Mapping):
        for key, value in node.items():
            loads = isinstance(value, Mapping) and type_name(value) == "Pretrained"
            if key in ("pretrained", "teacher_ckpt") or (key == "init_cfg" and loads):
                node[key] = None
            elif key == "type" and type_name(node) in ("SyncBN", "MMSyncBN"):
                node[key] = "BN"
            else:
                _make_local(value)
    elif isinstance(node, list | tuple):
        for item in node:
            _make_local(item)
