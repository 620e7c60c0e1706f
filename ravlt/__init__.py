"""RAVLT for OpenMMLab: ``custom_imports`` of this package registers the backbone."""

from .env.imports import require_imports

try:
    from . import models
    from .data.check import (
        verify as _verify,  # noqa: F401 (registers the pipeline step)
    )
except Exception:  # whatever a broken binary raises
    require_imports()  # explains it, if one of the packages that we need is the reason
    raise

# The modules below register hooks, loops and wrappers with mmengine.
from .errors import RAVLTError
from .inference.fold import switch_to_deploy
from .models import RAVLT
from .swap import swap_backbone
from .training import curves as _curves  # noqa: F401
from .training import layer_decay as _layer_decay  # noqa: F401
from .training import rank_hook as _rank_hook  # noqa: F401
from .training.checkpoints import fit_hook as _fit_hook  # noqa: F401
from .training.checkpoints import hook as _hook  # noqa: F401
from .training.checkpoints.host_loading import read_own_checkpoints
from .training.distributed import same_start as _same_start  # noqa: F401
from .training.guards import finite as _finite  # noqa: F401
from .training.guards import finite_steps as _finite_steps  # noqa: F401
from .training.loops import train_loops as _train_loops  # noqa: F401
from .version import __version__

read_own_checkpoints()

__all__ = [
    "RAVLT",
    "RAVLTError",
    "__version__",
    "models",
    "swap_backbone",
    "switch_to_deploy",
]
