"""mmengine's training loops, which also go on in the middle of an epoch, exactly.

Before each iteration they set the random state by its number, in the main process as
for loading. So there is no state of a generator to save: not of any worker, and not of
any other process of a distributed run.
"""

from mmengine.registry import LOOPS
from mmengine.runner import BaseLoop, EpochBasedTrainLoop, IterBasedTrainLoop

from ravlt.training.guards.signals import shield_workers

from .batches import TRAINING, number_batches, set_random_state


@LOOPS.register_module()
class SafeIterBasedTrainLoop(IterBasedTrainLoop):
    """IterBasedTrainLoop that resumes exactly, and without loading what is past.

    mmengine loads every batch again that had been trained on, which after days takes
    hours. Takes the same arguments.
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
            # Workers load ahead, and have begun before the checkpoint was read.
            for _ in range(min(batches.drawn, self._iter)):
                next(self.dataloader_iterator)
            self.dataloader_iterator = _InPlace(self.dataloader_iterator, self._iter)
            self.fast_forward_on_resume = False  # a short cut of the forks, inexact
        return super().run()

    def run_iter(self, data_batch) -> None:
        set_random_state(TRAINING, self.runner.seed, self.runner.rank, self._iter)
        super().run_iter(data_batch)

    @property
    def evaluation_is_due(self) -> bool:
        """Whether an evaluation belongs between the last iteration and the next."""
        self._decide_current_val_interval()
        return self._iter >= self.val_begin and (
            self._iter % self.val_interval == 0 or self._iter == self._max_iters
        )


@LOOPS.register_module()
class SafeEpochBasedTrainLoop(EpochBasedTrainLoop):
    """EpochBasedTrainLoop that also resumes within an epoch.

    Takes the same arguments.
    """

    def __init__(self, runner, dataloader, *args, **kwargs) -> None:
        BaseLoop.__init__(self, runner, dataloader)
        number_batches(self.dataloader, runner.seed, endless=False)
        shield_workers(self.dataloader)
        super().__init__(runner, self.dataloader, *args, **kwargs)
        self._passed = 0  # batches of this epoch that an earlier run trained on

    def run_epoch(self) -> None:
        length = len(self.dataloader)
        passed = self._iter - self._epoch * length
        # Otherwise the batch size has changed, and the epoch begins anew.
        self._passed = passed if 0 <= passed <= length else 0
        batches = self.dataloader.batch_sampler
        batches.drawn, batches.start = self._iter - self._passed, self._iter
        super().run_epoch()

    def run_iter(self, idx: int, data_batch) -> None:
        set_random_state(TRAINING, self.runner.seed, self.runner.rank, self._iter)
        super().run_iter(idx + self._passed, data_batch)

    @property
    def evaluation_is_due(self) -> bool:
        """Whether an evaluation belongs between the last epoch and the next."""
        self._decide_current_val_interval()
        return (
            self._iter == self._epoch * len(self.dataloader)
            and self._epoch >= self.val_begin
            and (
                self._epoch % self.val_interval == 0 or self._epoch == self._max_epochs
            )
        )


class _InPlace:
    """A loader's iterator that stands where it should.

    Passing over what is past, which mmengine does batch by batch and its fork by
    ``skip_iter``, then does nothing.
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
