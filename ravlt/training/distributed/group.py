"""Create the process group of a run before mmengine's runner is built."""

from datetime import timedelta

import torch.distributed as dist
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.dist import init_dist
from mmengine.utils.dl_utils import set_multi_processing

from ravlt.config import find_parts, type_name


def join_processes(cfg: Config) -> None:
    """Create the process group of a launcher's processes, which mmengine then uses.

    Without an accelerator the processes of torchrun use gloo, since mmengine requires
    CUDA. If a config has a ``strategy``, mmengine creates the group with the strategy.

    Args:
        cfg: Config with its ``launcher``, changed in place.
    """
    if cfg.launcher == "none":
        return
    env = cfg.get("env_cfg") or {}
    settings = env.get("dist_cfg") or {}
    if cfg.launcher == "pytorch" and get_device() == "cpu":
        _join_by_gloo(cfg, settings.get("timeout"))
    elif not cfg.get("strategy"):
        # Before init_dist, as in mmengine's runner; it otherwise sets a start method.
        set_multi_processing(**env.get("mp_cfg") or {}, distributed=True)
        init_dist(cfg.launcher, **settings)


def _join_by_gloo(cfg: Config, seconds: float | None) -> None:
    _replace_sync_bn(cfg.get("model"))
    dist.init_process_group("gloo", timeout=seconds and timedelta(seconds=seconds))
    # The settings of mmengine's default wrapper, without a device id.
    wrapper = dict(
        type="MMDistributedDataParallel",
        broadcast_buffers=False,
        find_unused_parameters=cfg.get("find_unused_parameters", False),
    )
    wrapper.update(cfg.get("model_wrapper_cfg") or {}, device_ids=None)
    cfg.model_wrapper_cfg = wrapper


def _replace_sync_bn(model) -> None:
    """Replace SyncBN, which needs GPUs, by BN, as mmengine does in one process."""
    for part in find_parts(model):
        if type_name(part) == "SyncBN":
            part["type"] = "BN"
