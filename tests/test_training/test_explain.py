import pickle

import pytest
import torch
from torch.utils.data import DataLoader

from ravlt.training.explain import explain


def caught(function) -> BaseException:
    with pytest.raises(Exception) as error:  # noqa: B017, PT011 (whatever PyTorch raises)
        function()
    return error.value


class Images(torch.utils.data.Dataset):
    """Images of two sizes."""

    def __len__(self) -> int:
        return 2

    def __getitem__(self, i: int) -> torch.Tensor:
        return torch.zeros(3, 4 + i, 5)


@pytest.mark.parametrize("workers", [0, 1])
def test_images_of_two_sizes(workers):
    loader = DataLoader(Images(), batch_size=2, num_workers=workers)
    text = explain(caught(lambda: next(iter(loader))))
    assert text.startswith(
        "The images or masks of one batch differ in size ([3, 4, 5] and [3, 5, 5]): "
    )
    assert "batch_size=1" in text and "model.data_preprocessor.size" in text


def test_images_of_two_sizes_in_an_evaluation_of_mmseg():
    preprocessor = pytest.importorskip("mmseg.models").SegDataPreProcessor()
    images = [torch.zeros(3, 4, 5), torch.zeros(3, 4, 6)]
    text = explain(caught(lambda: preprocessor({"inputs": images})))
    assert text.startswith("The images or masks of one batch differ in size: crop,")


def test_no_memory_on_the_gpu():
    error = torch.OutOfMemoryError(
        "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of "
        "1 GiB of which 0 bytes is free."
    )
    text = explain(pickle.loads(pickle.dumps(error)))
    assert text.startswith(
        "The GPU's memory is full (CUDA out of memory. Tried to allocate 2.00 GiB): "
        "train with --amp, lower train_dataloader.batch_size"
    )


def test_no_memory_on_the_machine():
    text = explain(caught(lambda: torch.empty(1 << 60, dtype=torch.uint8)))
    assert text.startswith("The machine's memory is full: lower num_workers, ")


@pytest.mark.parametrize(
    "error",
    [KeyError("bug"), RuntimeError("stack"), RuntimeError(), KeyboardInterrupt()],
)
def test_other_errors_are_not_explained(error):
    assert explain(error) is None
