"""RAVLT for OpenMMLab: ``custom_imports`` of this package registers the backbone."""

import contextlib

from .env.imports import require_imports

try:
    from . import models
    from .datasets import verify as _verify  # noqa: F401 (registers the pipeline step)
except Exception:  # whatever a broken binary raises
    require_imports()  # explains it, if one of the packages that we need is the reason
    raise

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
