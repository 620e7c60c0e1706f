"""Hooks that write checkpoints safely and repeat a missed evaluation."""

import logging
import os

from mmengine.dist import get_world_size, is_main_process
from mmengine.fileio import LocalBackend
from mmengine.hooks import CheckpointHook, EMAHook, Hook
from mmengine.logging import print_log
from mmengine.optim import ZeroRedundancyOptimizer
from mmengine.registry import HOOKS

from ravlt.storage import remove_partial
from ravlt.training.guards.signals import (
    Terminated,
    is_agreed,
    is_requested,
    shield_workers,
)

INTERRUPTED = "interrupted.pth"


@HOOKS.register_module()
class SafeCheckpointHook(CheckpointHook):
    """CheckpointHook that keeps a usable checkpoint when a run is killed.

    It deletes an old checkpoint after the new one is written. mmengine deletes first,
    so a kill in between leaves no checkpoint. At SIGTERM (see
    :func:`ravlt.training.guards.signals.noticing_sigterm`) the hook writes
    ``interrupted.pth`` and ends the run; the next regular checkpoint removes that file.
    It takes the arguments of CheckpointHook.
    """

    def before_train(self, runner) -> None:
        super().before_train(runner)
        if isinstance(self.file_backend, LocalBackend):
            self.file_backend = _DeferredRemoval()
            if is_main_process():
                remove_partial(self.out_dir)
        # Then an evaluation also writes its best score into the resumed checkpoint.
        self.last_ckpt = runner.message_hub.runtime_info.get("last_ckpt")
        if runner.val_loop is not None:
            shield_workers(runner.val_loop.dataloader)

    def after_train_iter(self, runner, batch_idx: int, *args, **kwargs) -> None:
        super().after_train_iter(runner, batch_idx, *args, **kwargs)
        if is_agreed(runner.iter + 1):
            self._stop(runner, runner.iter + 1)

    def after_val_iter(self, runner, batch_idx: int, *args, **kwargs) -> None:
        # Processes may have different numbers of batches, so each stops on its own.
        # With a sharded state they have to save together; then they stop in training,
        # at the next agreement.
        if is_requested() and not _saves_together(runner):
            for hook in runner.hooks:
                if isinstance(hook, EMAHook):
                    hook.after_val_epoch(runner)  # swaps back the trained weights
            self._stop(runner, runner.iter)

    def after_val_epoch(self, runner, metrics) -> None:
        # Set before the best score rewrites the checkpoint, which stores this value.
        runner.message_hub.update_info("evaluated", runner.iter)
        super().after_val_epoch(runner, metrics)

    def _save_checkpoint(self, runner) -> None:
        super()._save_checkpoint(runner)
        self._remove_replaced()

    def _save_best_checkpoint(self, runner, metrics) -> None:
        # CocoMetric returns no metric if the model detects no object.
        missing = set(getattr(self, "key_indicators", ())) - {"auto", *metrics}
        if missing:
            print_log(
                f"The evaluation gave no {' and no '.join(sorted(missing))}, so the "
                f"best checkpoint is unchanged.",
                logger="current",
                level=logging.WARNING,
            )
        super()._save_best_checkpoint(runner, metrics | dict.fromkeys(missing))
        self._remove_replaced()

    def after_train(self, runner) -> None:
        super().after_train(runner)
        # If an earlier run wrote the last checkpoint, nothing has been removed yet.
        if self.save_last:
            self._remove_interim()
            self._remove_replaced()

    def _save_checkpoint_with_step(self, runner, step: int, meta: dict) -> None:
        _gather_shards(runner)
        super()._save_checkpoint_with_step(runner, step, meta)
        self._remove_interim()

    def _remove_interim(self) -> None:
        path = self.file_backend.join_path(self.out_dir, INTERRUPTED)
        if is_main_process() and self.file_backend.exists(path):
            self.file_backend.remove(path)

    def _remove_replaced(self) -> None:
        if isinstance(self.file_backend, _DeferredRemoval):
            best = getattr(self, "best_ckpt_path", None)
            several = getattr(self, "best_ckpt_path_dict", {})
            self.file_backend.flush(keep={self.last_ckpt, best, *several.values()})

    def _stop(self, runner, iteration: int) -> None:
        _gather_shards(runner)
        runner.save_checkpoint(
            self.out_dir,
            INTERRUPTED,
            self.file_client_args,
            meta=dict(epoch=runner.epoch, iter=iteration),
            by_epoch=False,
            backend_args=self.backend_args,
        )
        path = self.file_backend.join_path(self.out_dir, INTERRUPTED)
        if is_main_process():
            with open(os.path.join(runner.work_dir, "last_checkpoint"), "w") as file:
                file.write(path)
        raise Terminated(
            f"stopped by SIGTERM after iteration {iteration}, saved as '{path}': "
            f"continue with --resume and the same --work-dir."
        )


def saves_at_sigterm(runner) -> bool:
    """Return whether a hook of the runner saves a checkpoint at SIGTERM."""
    return any(isinstance(hook, SafeCheckpointHook) for hook in runner.hooks)


def _saves_together(runner) -> bool:
    """Return whether all processes have to take part in writing a checkpoint."""
    return get_world_size() > 1 and (
        hasattr(runner, "strategy") or _sharded_optimizer(runner) is not None
    )


def _gather_shards(runner) -> None:
    """Gather the state of a sharded optimizer in rank 0; all processes call this.

    mmengine calls ``state_dict`` in rank 0 only, where its ZeroRedundancyOptimizer
    waits for the shards of the other processes forever.
    """
    optimizer = _sharded_optimizer(runner)
    if optimizer is not None:
        type(optimizer).consolidate_state_dict(optimizer)
        optimizer.consolidate_state_dict = lambda: None  # already done


def _sharded_optimizer(runner) -> ZeroRedundancyOptimizer | None:
    optimizer = getattr(runner.optim_wrapper, "optimizer", None)
    return optimizer if isinstance(optimizer, ZeroRedundancyOptimizer) else None


class _DeferredRemoval(LocalBackend):
    """File backend that deletes files only when :meth:`flush` is called."""

    def __init__(self) -> None:
        super().__init__()
        self._removed: list[str] = []

    def remove(self, filepath) -> None:
        self._removed.append(str(filepath))

    def flush(self, keep: set) -> None:
        for path in self._removed:
            # A resumed run may have just written a file under the old name.
            if path not in keep and os.path.isfile(path):
                os.remove(path)
        self._removed.clear()


@HOOKS.register_module()
class MissedEvaluationHook(Hook):
    """Hook that runs the evaluation which the resumed checkpoint has missed.

    A checkpoint is written before its evaluation, and mmengine resumes after that
    evaluation. A kill while evaluating would lose the metrics, and perhaps the best
    checkpoint.
    """

    priority = "LOWEST"  # after all other hooks have prepared

    def before_train(self, runner) -> None:
        """Evaluate if an evaluation is due and has not been done."""
        if (
            runner.iter > 0
            and runner.val_loop is not None
            and getattr(runner.train_loop, "evaluation_is_due", False)
            and runner.message_hub.runtime_info.get("evaluated") != runner.iter
        ):
            runner.val_loop.run()
