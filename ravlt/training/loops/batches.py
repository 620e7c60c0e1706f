"""Training batches by number, so that a run can go on at any of them.

What is drawn at random for a batch depends on the run's seed and on the batch's number
alone: neither on what was drawn before, nor on the process that loads it. A resumed
run therefore sees what an uninterrupted one would have seen.
"""

import random
from collections.abc import Iterator

import numpy as np
import torch
from mmengine.dist import get_rank
from torch.utils.data import DataLoader, Dataset, Sampler

# What randomness is for: the same number must not draw the same for both.
LOADING, TRAINING = 0, 1


def set_random_state(purpose: int, seed: int, rank: int, number: int) -> None:
    """Set the generators of Python, numpy and torch (on every device).

    Args:
        purpose: ``LOADING`` or ``TRAINING``.
        seed: Of the run.
        rank: Of the process that trains on the batch.
        number: Of the batch, counted from the beginning of the run.
    """
    key = np.random.SeedSequence([purpose, seed, rank, number])
    words = key.generate_state(4)
    random.seed(words.tobytes())
    np.random.seed(words)
    torch.manual_seed(int(words[0]) << 32 | int(words[1]))


class Batch(list):
    """Indices into the data set, with the batch's ``number`` in the run."""

    number: int


class NumberedBatches(Sampler):
    """A batch sampler that numbers its batches and begins at any of them.

    Args:
        batches: PyTorch's or a host's batch sampler.
        endless: Whether the next epoch follows without a pause, as training loops
            that count iterations want it.
    """

    def __init__(self, batches: Sampler, endless: bool) -> None:
        self.batches = batches
        self.endless = endless
        self.sampler = batches.sampler  # mmengine tells it the epoch
        self.batch_size = batches.batch_size  # --auto-scale-lr asks for it
        self.drawn = 0  # number of the batch that is drawn next
        self.start = 0  # earlier ones are passed over: their images are not loaded
        self._epoch = 0

    def __iter__(self) -> Iterator[Batch]:
        while True:
            for indices in self.batches:
                batch = Batch(indices)
                batch.number = self.drawn
                self.drawn += 1
                if batch.number >= self.start:
                    yield batch
            if not self.endless:
                return
            self._epoch += 1
            if hasattr(self.sampler, "set_epoch"):
                self.sampler.set_epoch(self._epoch)

    def __len__(self) -> int:
        return len(self.batches)


class _Loading:
    """Stands for a data set's ``__getitems__``, which PyTorch calls with a batch."""

    def __init__(self, dataset: Dataset, seed: int) -> None:
        self.dataset = dataset
        self.seed = seed
        self.rank = get_rank()  # a spawned worker has no process group to ask

    def __call__(self, batch: Batch) -> list:
        set_random_state(LOADING, self.seed, self.rank, batch.number)
        return [self.dataset[index] for index in batch]


def number_batches(loader: DataLoader, seed: int, endless: bool) -> None:
    """Numbers a loader's batches, and draws what is random in them by number.

    Args:
        loader: Of a training set; nothing has been loaded yet. Changed in place.
        seed: Of the run.
        endless: See :class:`NumberedBatches`.
    """
    # A loader refuses another sampler, since its own attributes tell of the first one;
    # here they stay true.
    object.__setattr__(
        loader, "batch_sampler", NumberedBatches(loader.batch_sampler, endless)
    )
    loader.dataset.__getitems__ = _Loading(loader.dataset, seed)
