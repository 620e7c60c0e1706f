"""Check that all processes of a run begin with the same state."""

import zlib

import torch
from mmengine.dist import all_gather_object, get_world_size
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ravlt.errors import RAVLTError


@HOOKS.register_module()
class SameStartHook(Hook):
    """Hook that stops a run whose processes loaded different weights or iterations.

    Each process reads the checkpoint itself, after DDP has copied the weights of rank
    0. If a machine has another file under the same name, the weights of its processes
    silently differ.
    """

    priority = "HIGHEST"  # before other hooks communicate

    def before_train(self, runner) -> None:
        """Raise RAVLTError in all processes if two of them differ."""
        if get_world_size() == 1:
            return
        starts = all_gather_object((runner.iter, _checksum(runner.model)))
        for rank, start in enumerate(starts):
            if start != starts[0]:
                first, other = (
                    f"process {r} is at iteration {iteration} with weights {weights}"
                    for r, (iteration, weights) in ((0, starts[0]), (rank, start))
                )
                raise RAVLTError(
                    f"The processes begin with different states ({first}, {other}); "
                    f"give all machines the same file "
                    f"'{runner.cfg.get('load_from')}'."
                )


def _checksum(model: nn.Module) -> str:
    """Return a checksum of a replicated model's parameters; exact on any device."""
    if not isinstance(model, DistributedDataParallel):
        return ""  # processes may hold different parts
    sums = [
        parameter.detach().reshape(-1).view(torch.uint8).sum()
        for parameter in model.parameters()
    ]
    return f"{zlib.crc32(torch.stack(sums).cpu().numpy().tobytes()):08x}"
