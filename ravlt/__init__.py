"""RAVLT for OpenMMLab: ``custom_imports`` of this package registers the backbone."""

import contextlib

try:
    import mmengine  # noqa: F401
except ImportError as error:
    raise ImportError(
        "ravlt needs mmengine, which comes with OpenMMLab or its maintained forks: "
        "run pip install 'ravlt[openmmlab]' or pip install 'ravlt[onedl]'."
    ) from error

from . import models
from .datasets import verify as _verify  # noqa: F401 (registers the pipeline step)
from .engine import checkpoint_hook as _checkpoint_hook  # noqa: F401 (registers it)
from .engine import finite as _finite  # noqa: F401 (registers hooks and wrappers)
from .engine import hooks as _hooks  # noqa: F401 (registers the hooks)
from .engine import layer_decay as _layer_decay  # noqa: F401 (registers it)
from .engine import loops as _loops  # noqa: F401 (registers the training loops)
from .engine import rank_hook as _rank_hook  # noqa: F401 (registers it)
from .engine.host_loading import read_own_checkpoints
from .errors import RAVLTError
from .inference.fold import switch_to_deploy  # also registers its hook
from .models import RAVLT
from .swap import swap_backbone
from .version import __version__

with contextlib.suppress(ImportError):  # PyTorch before 2.5 lacks what it is made of
    from .engine import sharding as _sharding  # noqa: F401 (registers its strategy)

read_own_checkpoints()

__all__ = [
    "RAVLT",
    "RAVLTError",
    "__version__",
    "models",
    "swap_backbone",
    "switch_to_deploy",
]
