"""Small models of the hosts with RAVLT as the backbone, in this process."""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import torch
from mmengine.registry import MODELS, DefaultScope
from torch import nn

from ravlt.config import load_config
from ravlt.swap.trial import init_weights_quietly

_SMALL = {"backbone.arch": "test", "neck.in_channels": [16, 32, 48, 64]}


def build_host(config: Path, changes: Mapping = MappingProxyType({})) -> nn.Module:
    """Build and initialize the model of a quickstart config at its smallest.

    Args:
        config: The config.
        changes: Keys within ``model`` and their values.
    """
    options = {f"model.{key}": value for key, value in (_SMALL | dict(changes)).items()}
    cfg = load_config(str(config), options)
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        torch.manual_seed(0)
        model = MODELS.build(cfg.model)
        init_weights_quietly(model)
    return model
