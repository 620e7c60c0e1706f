"""Several processes without GPUs, where mmengine asks for CUDA."""

from datetime import timedelta

import torch.distributed as dist
from mmengine.config import Config
from mmengine.device import get_device


def use_cpu_group(cfg: Config) -> None:
    """Joins the processes of torchrun by gloo if there is no accelerator.

    mmengine takes the group that it finds. With an accelerator nothing is changed.

    Args:
        cfg: Config with its ``launcher``, changed in place.
    """
    if cfg.launcher != "pytorch" or get_device() != "cpu":
        return
    seconds = (cfg.get("env_cfg") or {}).get("dist_cfg", {}).get("timeout")
    dist.init_process_group("gloo", timeout=seconds and timedelta(seconds=seconds))
    # As mmengine's own wrapper, but there is no device to name.
    wrapper = dict(
        type="MMDistributedDataParallel",
        broadcast_buffers=False,
        find_unused_parameters=cfg.get("find_unused_parameters", False),
    )
    wrapper.update(cfg.get("model_wrapper_cfg") or {}, device_ids=None)
    cfg.model_wrapper_cfg = wrapper
