"""What a run of our tools adds to a config, ours or the hosts'."""

import importlib.util
import logging

import torch
from mmengine.config import Config
from mmengine.logging import print_log

from ravlt.config import type_name
from ravlt.data.check.run import remove_verification
from ravlt.errors import RAVLTError
from ravlt.training.checkpoints.best import best_metric

_LOOPS = ("EpochBasedTrainLoop", "IterBasedTrainLoop")
_WRAPPERS = ("OptimWrapper", "AmpOptimWrapper")
# What costs time, each measured in docs/reliability.md.
_SAFETY = dict(exact_resume=True, checksums=True, finite_weights=True, sync_files=True)


def read_safety(cfg: Config) -> dict[str, bool]:
    """Return the switches of a config's ``safety``, such as ``dict(checksums=False)``.

    ``exact_resume`` seeds every batch, ``checksums`` reads a checkpoint to its end
    before a run resumes from it, ``finite_weights`` checks the weights of every
    checkpoint, ``sync_files`` waits until files are on the disk.

    Raises:
        RAVLTError: If there is no such switch.
    """
    chosen = cfg.get("safety") or {}
    unknown = chosen.keys() - _SAFETY.keys()
    if unknown:
        raise RAVLTError(
            f"safety has no switch '{min(unknown)}'; use {', '.join(_SAFETY)}."
        )
    return _SAFETY | chosen


def add_safety(cfg: Config) -> None:
    """Add what protects a run: checkpoints, finite losses, exact loops.

    Only what the config leaves open is filled in.

    Args:
        cfg: Config of mmdet or mmseg, changed in place.
    """
    safety = read_safety(cfg)
    remove_verification(cfg)
    # Not setdefault, which gives back another dict than the one that it stores.
    if not cfg.get("default_hooks"):
        cfg.default_hooks = {}
    if "checkpoint" not in cfg.default_hooks:
        cfg.default_hooks.checkpoint = dict(type="CheckpointHook")
    checkpoint = cfg.default_hooks.checkpoint
    if checkpoint is not None and type_name(checkpoint) == "CheckpointHook":
        checkpoint["type"] = "SafeCheckpointHook"
        best = best_metric(cfg)
        if best and "save_best" not in checkpoint:
            checkpoint.update(save_best=best, rule="greater")
    finite = dict(type="StopOnNonFiniteHook")
    if not safety["finite_weights"]:
        finite["check_weights"] = False
    for hook in (
        dict(type="SameStartHook"),
        finite,
        dict(type="LossSpikeHook"),
        dict(type="MissedEvaluationHook"),
    ):
        _add(cfg, "custom_hooks", hook)
    if safety["exact_resume"]:
        _use_safe_loop(cfg.get("train_cfg") or {})


def add_curves(cfg: Config) -> None:
    """Adds a picture of the curves and TensorBoard scalars to a training run.

    Args:
        cfg: Config of mmdet or mmseg, changed in place.
    """
    train_cfg = cfg.get("train_cfg") or {}
    logger = (cfg.get("default_hooks") or {}).get("logger")
    if logger and type_name(train_cfg).endswith("IterBasedTrainLoop"):
        # Or every evaluation is written as one of epoch 0.
        logger.setdefault("log_metric_by_epoch", False)
    _add(cfg, "custom_hooks", dict(type="CurveHook"))
    if not cfg.get("visualizer"):
        return
    if importlib.util.find_spec("tensorboard"):
        _add(cfg.visualizer, "vis_backends", dict(type="TensorboardVisBackend"))
    else:
        print_log(
            "TensorBoard scalars are not written: run pip install tensorboard.",
            "current",
            logging.WARNING,
        )


def set_precision(cfg: Config, amp: bool, dtype: str | None = None) -> None:
    """Turns on mixed precision, or turns it off where no accelerator can run it.

    Args:
        cfg: Config of mmdet or mmseg, changed in place.
        amp: Whether it was asked for on the command line.
        dtype: ``'float16'`` or ``'bfloat16'``; None leaves it to the config, and to
            PyTorch (float16) if that does not say either.

    Raises:
        RAVLTError: If it was asked for and cannot be had.
    """
    wrapper = cfg.optim_wrapper
    finite, kind = _wrapper_kind(cfg)
    accelerated = torch.cuda.is_available()
    if amp:
        if not accelerated:
            raise RAVLTError(
                "--amp needs a GPU, and torch finds none; run without --amp."
            )
        if kind not in _WRAPPERS:
            raise RAVLTError(
                f"--amp cannot change optim_wrapper.type='{kind}'; set the "
                f"mixed precision in the config."
            )
        wrapper.type = f"{finite}AmpOptimWrapper"
        wrapper.setdefault("loss_scale", "dynamic")
        if dtype:
            wrapper.dtype = dtype
    elif kind == "AmpOptimWrapper" and not accelerated:
        print_log(
            "No GPU: training in float32 in place of AmpOptimWrapper.",
            logger="current",
            level=logging.WARNING,
        )
        wrapper.type = f"{finite}OptimWrapper"
        for key in ("loss_scale", "dtype"):
            wrapper.pop(key, None)


def set_bad_losses(cfg: Config) -> None:
    """Lets a run leave out steps whose loss is not finite, if its config says so.

    ``bad_losses=dict(skip=3)`` leaves out up to three in a row; without it the first
    one stops the run.

    Args:
        cfg: Config of mmdet or mmseg, changed in place; its precision is set.

    Raises:
        RAVLTError: If that makes no sense, or the optimizer wrapper is another one.
    """
    bad_losses = cfg.get("bad_losses")
    if bad_losses is None:
        return
    skip = bad_losses.get("skip") if isinstance(bad_losses, dict) else None
    if not isinstance(skip, int) or skip < 1 or len(bad_losses) > 1:
        raise RAVLTError(
            f"bad_losses={bad_losses} must be dict(skip=k), with k steps in a row of "
            f"at least 1; or leave it out, and the first one stops the run."
        )
    _, kind = _wrapper_kind(cfg)
    if kind not in _WRAPPERS:
        raise RAVLTError(
            f"bad_losses cannot change optim_wrapper.type='{kind}'; leave it out."
        )
    cfg.optim_wrapper.update(type=f"Finite{kind}", skip=skip)


def _wrapper_kind(cfg: Config) -> tuple[str, str]:
    """'Finite' if the optimizer wrapper leaves out bad steps, and what it is else."""
    kind = type_name(cfg.optim_wrapper) or _WRAPPERS[0]
    base = kind.removeprefix("Finite")
    return kind.removesuffix(base), base


def _use_safe_loop(train_cfg: dict) -> None:
    if "by_epoch" in train_cfg and "type" not in train_cfg:
        epochs = train_cfg.pop("by_epoch")
        train_cfg["type"] = _LOOPS[0] if epochs else _LOOPS[1]
    kind = type_name(train_cfg)
    if kind in _LOOPS:
        train_cfg["type"] = f"Safe{kind}"


def _add(owner: dict, key: str, item: dict) -> None:
    items = list(owner.get(key) or [])
    if all(type_name(other) != item["type"] for other in items):
        owner[key] = [*items, item]
