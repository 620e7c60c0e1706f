"""What the checks of a user's data need of a runner, without a model to train."""

import copy
from types import SimpleNamespace

from mmengine.config import Config

from ravlt.config import LOADERS


def runner_of(cfg: Config) -> SimpleNamespace:
    """Return what a runner knows of data before it builds a dataloader.

    As mmengine's ``Runner``, it has the dataloaders' configs apart from ``cfg``.
    """
    loaders = {f"_{name}": copy.deepcopy(cfg.get(name)) for name in LOADERS}
    return SimpleNamespace(cfg=cfg, work_dir=cfg.get("work_dir"), **loaders)
