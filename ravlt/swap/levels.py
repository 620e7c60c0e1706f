"""What a backbone hands to the rest of a model: channels and strides."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import MODELS, DefaultScope

from ravlt.errors import RAVLTError

_SIDE = 256  # a multiple of every stride in use


@dataclass(frozen=True)
class Level:
    """A feature map: its channels, and pixels of the image a step."""

    channels: int
    stride: int


def backbone_levels(backbone: Mapping, scope: str) -> list[Level]:
    """Asks a backbone what it gives: it is built, without weights, and run.

    Args:
        backbone: Config of the backbone.
        scope: 'mmdet' or 'mmseg'.

    Raises:
        RAVLTError: If it cannot run here, or gives something else than maps.
    """
    cfg = copy.deepcopy(dict(backbone))
    cfg.pop("init_cfg", None)
    cfg.pop("pretrained", None)
    with DefaultScope.overwrite_default_scope(scope):
        try:
            try:
                outs = _run(cfg, "meta")
            except RuntimeError:  # some look at numbers while they are built
                outs = _run(cfg, "cpu")
        except Exception as error:
            reason = str(error).split("\n")[0] or type(error).__name__
            raise RAVLTError(
                f"The backbone {cfg['type']} cannot run here, so what it gives is not "
                f"known ({reason}); install what it needs, or choose another config."
            ) from error
    maps = list(outs) if isinstance(outs, list | tuple) else [outs]
    if not all(isinstance(x, torch.Tensor) and x.ndim == 4 for x in maps):
        raise RAVLTError(
            f"The backbone {cfg['type']} gives something else than feature maps, which "
            f"RAVLT cannot replace; choose a config with a convolutional pyramid."
        )
    return [Level(x.shape[1], round(_SIDE / x.shape[-1])) for x in maps]


def _run(cfg: dict, device: str):
    with torch.device(device), torch.no_grad():
        model = revert_sync_batchnorm(MODELS.build(cfg))
        model.eval()  # which gives None for some
        return model(torch.zeros(1, cfg.get("in_channels", 3), _SIDE, _SIDE))
