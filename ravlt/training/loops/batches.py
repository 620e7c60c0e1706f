"""Number the training batches, so that a run can resume at any of them.

The random numbers of a batch depend only on the run's seed, the rank and the number of
the batch: neither on earlier random numbers, nor on the worker that loads it. A resumed
run therefore trains on the same batches as an uninterrupted one.
"""

import random
from collections.abc import Iterator

import numpy as np
import torch
from mmengine.dist import get_rank
from torch.utils.data import DataLoader, Dataset, Sampler

# Purposes of random numbers: loading a batch and training on it draw different ones.
LOADING, TRAINING = 0, 1


def set_random_state(purpose: int, seed: int, rank: int, number: int) -> None:
    """Set the generators of Python, numpy and torch (on every device).

    Args:
        purpose: ``LOADING`` or ``TRAINING``.
        seed: Seed of the run.
        rank: Rank of the process that trains on the batch.
        number: Number of the batch, counted from the beginning of the run.
    """
    key = np.random.SeedSequence([purpose, seed, rank, number])
    words = key.generate_state(4)
    random.seed(words.tobytes())
    np.random.seed(words)
    torch.manual_seed(int(words[0]) << 32 | int(words[1]))


class Batch(list):
    """Indices into the data set, with the ``number`` of the batch in the run."""

    number: int


class NumberedBatches(Sampler):
    """Batch sampler that numbers its batches and can begin at any of them.

    Args:
        batches: Batch sampler of PyTorch or a host.
        endless: Whether the next epoch follows at once, as training loops that count
            iterations require.
    """

    def __init__(self, batches: Sampler, endless: bool) -> None:
        self.batches = batches
        self.endless = endless
        self.sampler = batches.sampler  # mmengine calls its set_epoch
        self.batch_size = batches.batch_size  # --auto-scale-lr reads it
        self.drawn = 0  # number of the next batch
        self.start = 0  # batches before it are skipped without loading
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
    """Replacement of a data set's ``__getitems__`` that seeds each batch."""

    def __init__(self, dataset: Dataset, seed: int) -> None:
        self.dataset = dataset
        self.seed = seed
        self.rank = get_rank()  # a spawned worker has no process group

    def __call__(self, batch: Batch) -> list:
        set_random_state(LOADING, self.seed, self.rank, batch.number)
        return [self.dataset[index] for index in batch]


def number_batches(loader: DataLoader, seed: int, endless: bool) -> None:
    """Number the batches of a data loader, and seed the loading of each by its number.

    Args:
        loader: Data loader of a training set that has loaded nothing yet; changed in
            place.
        seed: Seed of the run.
        endless: See :class:`NumberedBatches`.
    """
    # A loader refuses another batch sampler, because its attributes describe the first
    # one. They remain valid here, since NumberedBatches only wraps it.
    object.__setattr__(
        loader, "batch_sampler", NumberedBatches(loader.batch_sampler, endless)
    )
    loader.dataset.__getitems__ = _Loading(loader.dataset, seed)
