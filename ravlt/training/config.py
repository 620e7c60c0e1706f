"""Add hooks, loops and optimizer wrappers to the config of a run."""

import importlib.util
import logging

import torch
from mmengine.config import Config
from mmengine.hooks import CheckpointHook
from mmengine.logging import print_log
from mmengine.registry import HOOKS, LOOPS
from mmengine.runner import EpochBasedTrainLoop, IterBasedTrainLoop

from ravlt.config import find_class, type_name
from ravlt.data.check.run import remove_verification
from ravlt.errors import RAVLTError
from ravlt.training.checkpoints.best import best_metric

_LOOPS = (EpochBasedTrainLoop, IterBasedTrainLoop)
_WRAPPERS = ("OptimWrapper", "AmpOptimWrapper")
# Each of these costs time, as docs/reliability.md measures.
_SAFETY = dict(exact_resume=True, checksums=True, finite_weights=True, sync_files=True)


def read_safety(cfg: Config) -> dict[str, bool]:
    """Return the switches of a config's ``safety``, such as ``dict(checksums=False)``.

    ``exact_resume`` seeds every batch, ``checksums`` verifies a checkpoint before a run
    resumes from it, ``finite_weights`` checks the weights of every checkpoint for NaN
    and Inf, ``sync_files`` waits until files are on the disk.

    Raises:
        RAVLTError: If the config names an unknown switch.
    """
    chosen = cfg.get("safety") or {}
    unknown = chosen.keys() - _SAFETY.keys()
    if unknown:
        raise RAVLTError(
            f"safety has no switch '{min(unknown)}'; use {', '.join(_SAFETY)}."
        )
    return _SAFETY | chosen


def add_safety(cfg: Config) -> None:
    """Add hooks and loops that protect a run: checkpoints, finite losses, exact resume.

    Settings of the config stay as they are.

    Args:
        cfg: Config of mmdet or mmseg, changed in place.
    """
    safety = read_safety(cfg)
    remove_verification(cfg)
    # Not setdefault, which returns another dict than the one that it stores.
    if not cfg.get("default_hooks"):
        cfg.default_hooks = {}
    if "checkpoint" not in cfg.default_hooks:
        cfg.default_hooks.checkpoint = dict(type="CheckpointHook")
    checkpoint = cfg.default_hooks.checkpoint
    scope = cfg.get("default_scope")
    if checkpoint and find_class(checkpoint, HOOKS, scope) is CheckpointHook:
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
        _use_safe_loop(cfg.get("train_cfg") or {}, scope)


def add_curves(cfg: Config) -> None:
    """Add a plot of the curves and TensorBoard scalars to a training run.

    Args:
        cfg: Config of mmdet or mmseg, changed in place.
    """
    train_cfg = cfg.get("train_cfg") or {}
    logger = (cfg.get("default_hooks") or {}).get("logger")
    if logger and type_name(train_cfg).endswith("IterBasedTrainLoop"):
        # Otherwise every evaluation is logged as epoch 0.
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
    """Turn on mixed precision, or turn it off if there is no GPU.

    Args:
        cfg: Config of mmdet or mmseg, changed in place.
        amp: Whether the command line requests mixed precision.
        dtype: ``'float16'`` or ``'bfloat16'``; None uses the config's dtype, or
            PyTorch's default (float16).

    Raises:
        RAVLTError: If mixed precision is requested, but there is no GPU or the
            optimizer wrapper is of another type.
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
    """Select the optimizer wrapper that skips steps, if the config has ``bad_losses``.

    ``bad_losses=dict(skip=3)`` skips up to three consecutive steps whose loss is not
    finite. Without it the first such loss stops the run.

    Args:
        cfg: Config of mmdet or mmseg, changed in place, after :func:`set_precision`.

    Raises:
        RAVLTError: If the setting is invalid, or the optimizer wrapper is of another
            type.
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
    """Split the optimizer wrapper's type into 'Finite', or '', and the base type."""
    kind = type_name(cfg.optim_wrapper) or _WRAPPERS[0]
    base = kind.removeprefix("Finite")
    return kind.removesuffix(base), base


def _use_safe_loop(train_cfg: dict, scope: str | None) -> None:
    if "by_epoch" in train_cfg and "type" not in train_cfg:
        epochs = train_cfg.pop("by_epoch")
        train_cfg["type"] = (_LOOPS[0] if epochs else _LOOPS[1]).__name__
    kind = find_class(train_cfg, LOOPS, scope)
    if kind in _LOOPS:  # no loop of somebody's own, which may have the same name
        train_cfg["type"] = f"Safe{kind.__name__}"


def _add(owner: dict, key: str, item: dict) -> None:
    items = list(owner.get(key) or [])
    if all(type_name(other) != item["type"] for other in items):
        owner[key] = [*items, item]
