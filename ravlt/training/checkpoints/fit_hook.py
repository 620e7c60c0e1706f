"""Refuse a checkpoint that does not fit the model, or report it in one line."""

import logging

from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.model import BaseTTAModel, is_model_wrapper
from mmengine.registry import HOOKS
from mmengine.runner import Runner

from ravlt.config import type_name
from ravlt.errors import RAVLTError


def add_fit_check(cfg: Config, strict: bool) -> None:
    """Add a :class:`CheckpointFitHook` to a config.

    Args:
        cfg: Config of mmdet or mmseg, changed in place.
        strict: See :class:`CheckpointFitHook`.
    """
    hook = dict(type=CheckpointFitHook.__name__, strict=strict)
    hooks = [h for h in cfg.get("custom_hooks") or [] if type_name(h) != hook["type"]]
    cfg.custom_hooks = [*hooks, hook]


@HOOKS.register_module()
class CheckpointFitHook(Hook):
    """Hook that compares a checkpoint with the model before mmengine loads it.

    mmengine loads the tensors that fit, lists all others in the log and continues, even
    if no tensor fits.

    Args:
        strict: Refuse every difference except a part, such as a mask head, that only
            the file has. If False, log in one line what was not loaded, and refuse only
            a file without any tensor of the model. A run that resumes is always strict.
    """

    priority = "LOWEST"  # after hooks of users, which may rename tensors

    def __init__(self, strict: bool = False) -> None:
        self.strict = strict

    def after_load_checkpoint(self, runner, checkpoint: dict) -> None:
        """Check the checkpoint, and add the tensors that it lacks from the model.

        Raises:
            RAVLTError: If the checkpoint does not fit.
        """
        # `import ravlt` does not load the code that reads weights.
        from ravlt.weights.fit import load_fitting

        # The strategy of a FlexibleRunner may hold a shard of the model.
        if not isinstance(runner, Runner):
            return
        model = runner.model
        while is_model_wrapper(model) or isinstance(model, BaseTTAModel):
            model = model.module
        tensors = checkpoint.get("state_dict", checkpoint)
        checkpoint["state_dict"], fit = load_fitting(model, tensors)
        path = runner.cfg.get("load_from")
        if runner._resume:
            strict, otherwise = True, ", or start anew with it as load_from"
        else:
            strict, otherwise = self.strict, ""
            if strict:
                otherwise = ", or evaluate what fits with --allow-partial"
        if not fit.loaded:
            strict, otherwise = True, ""
        if strict and not fit.is_complete:
            raise RAVLTError(
                f"Checkpoint '{path}' does not fit the model (it has {fit.summary()}): "
                f"{fit.remedy()}{otherwise}."
            )
        level = logging.INFO if fit.is_exact else logging.WARNING
        text = f"Loaded {fit.summary()}, from '{path}'."
        print_log(text, logger="current", level=level)
