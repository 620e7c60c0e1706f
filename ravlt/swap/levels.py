"""Output of a backbone, neck or head, which is built without weights and run."""

import contextlib
import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import MODELS, DefaultScope
from torch import Tensor

from ravlt.errors import RAVLTError

from .sites import Site

_SIDE = 256  # pixels; a multiple of every stride in use
_BATCH = 2  # norms over single values fail in training


@dataclass(frozen=True)
class Level:
    """A feature map: its channels, and pixels of the image a step."""

    channels: int
    stride: int


@dataclass(frozen=True)
class Backbone:
    """What is known of a backbone once it has been asked.

    Args:
        levels: Its feature maps, in order.
        parameters: Names of its parameters.
    """

    levels: tuple[Level, ...]
    parameters: tuple[str, ...]


def ask_backbone(site: Site, scope: str) -> Backbone:
    """Builds a backbone without weights and runs it, as in training.

    Args:
        site: Where it is.
        scope: 'mmdet' or 'mmseg'.

    Raises:
        RAVLTError: If it cannot run here, or gives something else than a map of each
            image at each level.
    """
    cfg, kind = site.backbone, site.kind
    side = cfg.get("img_size", _SIDE)  # the only one that some take
    side = side if isinstance(side, int) else side[0]
    images = [(_BATCH, cfg.get("in_channels", 3), side, side)]
    try:
        maps, parameters = _run(cfg, scope, lambda model, x: model(*x), images)
    except Exception as error:
        reason = str(error).strip().split("\n")[0].rstrip(".") or type(error).__name__
        raise RAVLTError(
            f"The backbone {kind} cannot run here, so that what it gives is not known "
            f"({reason}); install what it needs, or choose another config."
        ) from error
    if not all(isinstance(x, Tensor) and x.ndim == 4 for x in maps):
        raise RAVLTError(
            f"The backbone {kind} gives something else than feature maps, which RAVLT "
            f"cannot replace; choose a config whose backbone gives feature maps only."
        )
    if any(len(x) != _BATCH for x in maps):
        raise RAVLTError(
            f"The backbone {kind} gives several maps for one image (branches of its "
            f"own, which the heads count on), which RAVLT cannot replace; choose the "
            f"config of a detector without branches, such as Faster R-CNN."
        )
    return Backbone(_levels(maps, side), parameters)


def ask_reader(cfg: Mapping, scope: str, levels: Sequence[Level]) -> tuple[Level, ...]:
    """Build a neck, or a head of mmseg, without weights and run it.

    Args:
        cfg: Config of the neck or head.
        scope: 'mmdet' or 'mmseg'.
        levels: Its input.

    Returns:
        Its output.

    Raises:
        Exception: Whatever it raises with such an input.
    """
    shapes = [
        (_BATCH, x.channels, _SIDE // x.stride, _SIDE // x.stride) for x in levels
    ]
    maps, _ = _run(cfg, scope, lambda model, x: model(tuple(x)), shapes)
    return _levels(maps, _SIDE)


def _run(cfg: Mapping, scope: str, call, shapes) -> tuple[list, tuple[str, ...]]:
    """Gives the output of a part for zeros, and the names of its parameters."""
    cfg = copy.deepcopy(dict(cfg))
    for key in ("init_cfg", "pretrained"):
        cfg.pop(key, None)
    norm = cfg.get("norm_cfg")
    if norm and norm.get("eps") == 0:
        # PyTorch 2.10 and later refuse it in training; it has no bearing on shapes.
        cfg["norm_cfg"] = {key: norm[key] for key in norm if key != "eps"}

    def run(built_on: str, device: str):
        with torch.device(built_on):
            model = revert_sync_batchnorm(MODELS.build(copy.deepcopy(cfg)))
        model.to(device).train()  # some give other maps than in evaluation
        with torch.device(device), torch.no_grad():
            outs = call(model, [torch.zeros(shape) for shape in shapes])
        maps = list(outs) if isinstance(outs, list | tuple) else [outs]
        return maps, tuple(name for name, _ in model.named_parameters())

    with DefaultScope.overwrite_default_scope(scope):
        # The meta device computes nothing, but some parts need numbers while they are
        # built, and others while they run.
        for built_on, device in (("meta", "meta"), ("cpu", "meta")):
            with contextlib.suppress(RuntimeError, NotImplementedError):
                return run(built_on, device)
        return run("cpu", "cpu")


def _levels(maps: Sequence[Tensor], side: int) -> tuple[Level, ...]:
    return tuple(Level(x.shape[1], round(side / x.shape[-1])) for x in maps)
