"""Report the batch size and the learning rate of a run beside its recipe's."""

import logging
import math

from mmengine.config import Config
from mmengine.dist import get_world_size
from mmengine.logging import print_log


def report_batch_size(cfg: Config) -> None:
    """Log the batch size and the learning rate of a run beside its recipe's.

    The recipe's batch size is ``auto_scale_lr.base_batch_size``. Nothing is logged
    without it. A learning rate that is not proportional to the batch is a warning.

    Args:
        cfg: Config of mmdet or mmseg; the process group exists already.
    """
    scaling = cfg.get("auto_scale_lr") or {}
    base = scaling.get("base_batch_size")
    images = cfg.train_dataloader.get("batch_size")
    rate = (cfg.optim_wrapper.get("optimizer") or {}).get("lr")
    if not base or not images or not rate:
        return
    processes = get_world_size()
    steps = cfg.optim_wrapper.get("accumulative_counts", 1)
    batch = processes * images * steps
    meant = rate * batch / base
    # mmengine does not count accumulated iterations.
    used = rate * processes * images / base if scaling.get("enable") else rate

    factors = f"{processes} process{'es' * (processes > 1)} x {images}"
    if steps > 1:
        factors += f", accumulated over {steps} iterations"
    line = f"Batch of {batch} images ({factors}) at a learning rate of {used:g}"
    level = logging.INFO
    if not math.isclose(used, meant):
        level = logging.WARNING
        line += (
            f"; the recipe means {rate:g} for {base} images, which is {meant:g} for "
            f"{batch}: "
        )
        if steps > 1:
            line += (
                f"set optim_wrapper.optimizer.lr={meant:g} without --auto-scale-lr, "
                f"which does not count accumulation."
            )
        else:
            line += "add --auto-scale-lr."
    elif batch == base:
        line += ", as in the recipe."
    else:
        line += f", scaled from the recipe's {rate:g} for {base} images."
    print_log(line, logger="current", level=level)
