"""What workers draw at random: a matter of seed, rank and batch, not of the worker."""

import random

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from ravlt.training.loops import batches
from ravlt.training.loops.batches import number_batches


class Draws(Dataset):
    """Draw a number from each generator."""

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> list[float]:
        return [random.random(), np.random.rand(), torch.rand(()).item()]


def drawn(monkeypatch, rank: int, **loading) -> list[list[float]]:
    # A spawned worker imports the library anew, so it has neither this patch nor, in a
    # real run, the process group.
    monkeypatch.setattr(batches, "get_rank", lambda: rank)
    loader = DataLoader(Draws(), batch_size=1, collate_fn=list, **loading)
    number_batches(loader, seed=0, endless=False)
    return [values for (values,) in loader]


@pytest.mark.integration
@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_workers_draw_by_the_rank_of_their_main_process(monkeypatch, start):
    own = drawn(monkeypatch, 1)
    assert own != drawn(monkeypatch, 0)
    workers = dict(num_workers=1, multiprocessing_context=start)
    assert drawn(monkeypatch, 1, **workers) == own
