"""Training in which each process holds a part of weights, gradients and optimizer."""

import os
import time
from collections.abc import Callable

import torch
from mmengine._strategy.fsdp import FSDPStrategy
from mmengine._strategy.single_device import SingleDeviceStrategy
from mmengine.device import get_device
from mmengine.dist import broadcast, get_world_size, is_distributed
from mmengine.registry import FUNCTIONS, STRATEGIES
from torch import Tensor, nn
from torch.distributed.checkpoint import state_dict as states
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor

from ravlt.errors import RAVLTError
from ravlt.models.ravlt import Block

from .shards import MODEL, read_shards, write_shards

_OPTIMIZER = "optimizer."
_WRAPPER = "_fsdp_wrapped_module."  # in names, which are written without it


@FUNCTIONS.register_module()
def wrap_blocks(module: nn.Module, recurse: bool, nonwrapped_numel: int) -> bool:
    """Shards RAVLT block by block, as an ``auto_wrap_policy``."""
    return recurse or isinstance(module, Block)


@STRATEGIES.register_module()
class ShardedStrategy(FSDPStrategy):
    """mmengine's FSDP, with checkpoints that PyTorch and any number of processes read.

    mmengine's own are pickled shards, which PyTorch since 2.6 refuses to load. Clips
    gradients by the norm of all shards, not each process by that of its own.

    Args:
        **kwargs: As of mmengine's FSDPStrategy.
    """

    def _wrap_model(self, model: nn.Module) -> nn.Module:
        if not is_distributed():
            raise RAVLTError(
                "strategy='ShardedStrategy' needs several processes; start it by "
                "tools/dist_train.sh."
            )
        kind = get_device()
        index = int(os.environ["LOCAL_RANK"]) if kind != "cpu" else None
        here = dict(
            type="MMFullyShardedDataParallel",
            device_mesh=init_device_mesh(kind, (get_world_size(),)),
            device_id=torch.device(kind, index),
        )
        self.model_wrapper = here | (self.model_wrapper or {})
        return super()._wrap_model(model)

    def build_optim_wrapper(self, optim_wrapper, model: nn.Module | None = None):
        """As mmengine, but the norm of gradients is that of all shards together."""
        wrapper = super().build_optim_wrapper(optim_wrapper, model)
        clip = getattr(wrapper, "clip_func", None)
        if clip is not nn.utils.clip_grad_value_:
            wrapper.clip_func = lambda parameters, **kwargs: model.clip_grad_norm_(
                **kwargs
            )
        return wrapper

    def save_checkpoint(
        self,
        filename: str,
        *,
        save_optimizer: bool = True,
        save_param_scheduler: bool = True,
        extra_ckpt: dict,
        callback: Callable | None = None,
    ) -> None:
        """Writes a sharded checkpoint, see :mod:`ravlt.engine.shards`.

        Args:
            filename: Folder.
            save_optimizer: Whether the optimizer's state is written.
            save_param_scheduler: Whether the schedulers' states are written.
            extra_ckpt: What else belongs to the checkpoint, as the runner gives it.
            callback: Called with all of it before it is written, this process's parts
                of the weights as ``state_dict``; it may look at them.
        """
        rest = dict(extra_ckpt)
        rest["meta"] = _settled(rest["meta"], rest["message_hub"]["runtime_info"])
        rest["meta"].update(seed=self.seed, time=time.strftime("%Y%m%d_%H%M%S"))
        if save_param_scheduler and hasattr(self, "param_schedulers"):
            rest["param_schedulers"] = self.scheduler_state_dict()
        weights = self.model_state_dict()
        rest["state_dict_metadata"] = {
            f"{key}.".replace(_WRAPPER, "")[:-1]: value
            for key, value in weights._metadata.items()
        }
        tensors = {MODEL + key: value for key, value in weights.items()}
        if save_optimizer:
            optimizer = self.optim_state_dict()
            tensors |= _named(optimizer)
            # With what the wrapper adds, such as the scale of fp16's losses.
            wrapper = self.optim_wrapper.state_dict()
            wrapper["param_groups"] = optimizer["param_groups"]
            rest["optimizer"] = {k: v for k, v in wrapper.items() if k != "state"}
        if callback is not None:
            callback(rest | dict(state_dict=_parts(weights)))
        write_shards(filename, tensors, rest)

    def load_checkpoint(
        self, filename: str, *, callback: Callable | None = None, **kwargs
    ) -> dict:
        """Loads a sharded checkpoint, or the weights of a plain one.

        Args:
            filename: A folder, or a file or address.
            callback: As of :meth:`save_checkpoint`.
            **kwargs: As of mmengine, for files.
        """
        if not os.path.isdir(filename):
            return SingleDeviceStrategy.load_checkpoint(
                self, filename, callback=callback, **kwargs | dict(map_location="cpu")
            )
        weights = states.get_model_state_dict(self.model)
        rest = read_shards(filename, {MODEL + k: v for k, v in weights.items()})
        if callback is not None:
            callback(rest | dict(state_dict=_parts(weights)))
        states.set_model_state_dict(self.model, weights)
        return rest | dict(optimizer=filename)  # read if it is asked for

    def resume(self, filename: str, **kwargs) -> dict:
        """As mmengine.

        Raises:
            RAVLTError: If the checkpoint is not sharded.
        """
        if not os.path.isdir(filename):
            raise RAVLTError(
                f"Checkpoint '{filename}' is not sharded, and a sharded run cannot "
                f"resume from it; begin a new run with its weights (--cfg-options "
                f"load_from={filename})."
            )
        return super().resume(filename, **kwargs)

    def model_state_dict(self) -> dict:
        """Gives the weights, sharded; running statistics are the main process's."""
        weights = states.get_model_state_dict(self.model)
        for key, value in weights.items():
            if not isinstance(value, DTensor):
                weights[key] = value.clone()
                broadcast(weights[key])
        return weights

    def optim_state_dict(self) -> dict:
        """Gives the optimizer's state by the names of parameters, sharded."""
        return states.get_optimizer_state_dict(self.model, self.optim_wrapper.optimizer)

    def load_model_state_dict(self, state_dict: dict, **kwargs) -> None:
        """Loads the weights of a plain checkpoint; others keep their values."""
        options = states.StateDictOptions(full_state_dict=True, strict=False)
        states.set_model_state_dict(self.model, state_dict, options=options)

    def load_optim_state_dict(self, filename: str) -> None:
        """Loads the optimizer's state from a sharded checkpoint."""
        optimizer = self.optim_state_dict()
        saved = read_shards(filename, _named(optimizer))["optimizer"]
        optimizer["param_groups"] = saved.pop("param_groups")
        self.optim_wrapper.load_state_dict(self.optim_wrapper.state_dict() | saved)
        states.set_optimizer_state_dict(
            self.model, self.optim_wrapper.optimizer, optim_state_dict=optimizer
        )


def _settled(meta: dict, begun: dict) -> dict:
    """Takes back what FlexibleRunner counts twice once it is evaluated.

    A run that resumed from there would leave out an iteration, or an epoch.
    """
    return meta | {key: min(meta[key], begun[key] + 1) for key in ("epoch", "iter")}


def _named(optimizer: dict) -> dict[str, Tensor]:
    """The tensors of an optimizer; what else it holds is the same in a new one."""
    return {
        f"{_OPTIMIZER}{name}.{key}": value
        for name, state in optimizer["state"].items()
        for key, value in state.items()
        if isinstance(value, Tensor)
    }


def _parts(weights: dict) -> dict[str, Tensor]:
    """What this process holds of each."""
    return {
        key: value.to_local() if isinstance(value, DTensor) else value
        for key, value in weights.items()
    }
