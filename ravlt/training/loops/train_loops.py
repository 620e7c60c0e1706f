"""mmengine's training loops with exact resuming, also in the middle of an epoch.

The loops seed the random generators before each iteration by its number, in the main
process as in the workers. A checkpoint therefore needs no generator states of workers
or of the processes of a distributed run.
"""

from mmengine.registry import LOOPS
from mmengine.runner import BaseLoop, EpochBasedTrainLoop, IterBasedTrainLoop

from ravlt.training.guards.signals import shield_workers

from .batches import TRAINING, number_batches, set_random_state


@LOOPS.register_module()
class SafeIterBasedTrainLoop(IterBasedTrainLoop):
    """IterBasedTrainLoop that resumes exactly, without loading earlier batches again.

    mmengine loads all batches that the earlier run trained on, which takes hours after
    days of training. Takes the arguments of IterBasedTrainLoop.
    """

    def __init__(self, runner, dataloader, *args, **kwargs) -> None:
        BaseLoop.__init__(self, runner, dataloader)
        number_batches(self.dataloader, runner.seed, endless=True)
        shield_workers(self.dataloader)
        super().__init__(runner, self.dataloader, *args, **kwargs)

    def run(self):
        if self._iter:
            batches = self.dataloader.batch_sampler
            batches.start = self._iter
            # Workers load ahead and have begun with batch 0, before the checkpoint was
            # read; discard these batches.
            for _ in range(min(batches.drawn, self._iter)):
                next(self.dataloader_iterator)
            self.dataloader_iterator = _Resumed(self.dataloader_iterator, self._iter)
            # This shortcut of mmengine's forks does not resume exactly.
            self.fast_forward_on_resume = False
        return super().run()

    def run_iter(self, data_batch) -> None:
        set_random_state(TRAINING, self.runner.seed, self.runner.rank, self._iter)
        super().run_iter(data_batch)

    @property
    def evaluation_is_due(self) -> bool:
        """Whether an evaluation is due before the next iteration."""
        self._decide_current_val_interval()
        return self._iter >= self.val_begin and (
            self._iter % self.val_interval == 0 or self._iter == self._max_iters
        )


@LOOPS.register_module()
class SafeEpochBasedTrainLoop(EpochBasedTrainLoop):
    """EpochBasedTrainLoop that also resumes within an epoch.

    Takes the arguments of EpochBasedTrainLoop.
    """

    def __init__(self, runner, dataloader, *args, **kwargs) -> None:
        BaseLoop.__init__(self, runner, dataloader)
        number_batches(self.dataloader, runner.seed, endless=False)
        shield_workers(self.dataloader)
        super().__init__(runner, self.dataloader, *args, **kwargs)
        self._passed = 0  # batches of this epoch that the earlier run trained on

    def run_epoch(self) -> None:
        length = len(self.dataloader)
        passed = self._iter - self._epoch * length
        # Outside this range the batch size has changed; then restart the epoch.
        self._passed = passed if 0 <= passed <= length else 0
        batches = self.dataloader.batch_sampler
        batches.drawn, batches.start = self._iter - self._passed, self._iter
        super().run_epoch()

    def run_iter(self, idx: int, data_batch) -> None:
        set_random_state(TRAINING, self.runner.seed, self.runner.rank, self._iter)
        super().run_iter(idx + self._passed, data_batch)

    @property
    def evaluation_is_due(self) -> bool:
        """Whether an evaluation is due before the next epoch."""
        self._decide_current_val_interval()
        return (
            self._iter == self._epoch * len(self.dataloader)
            and self._epoch >= self.val_begin
            and (
                self._epoch % self.val_interval == 0 or self._epoch == self._max_epochs
            )
        )


class _Resumed:
    """Iterator of a data loader that is already at the batch to resume from.

    mmengine skips earlier batches by calling ``next``, and its fork by ``skip_iter``.
    Here neither loads a batch.
    """

    def __init__(self, iterator, passed: int) -> None:
        self._iterator = iterator
        self._passed = passed

    def __next__(self):
        if self._passed:
            self._passed -= 1
            return None
        return next(self._iterator)

    def skip_iter(self, num_iters: int) -> None:
        self._passed = 0
