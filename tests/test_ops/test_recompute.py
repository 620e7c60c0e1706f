"""When the backward pass computes again: counted by calls of the function."""

import pytest
import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode

from ravlt.ops.recompute import recompute


@pytest.mark.parametrize(
    ("enabled", "device", "count"),
    [
        (None, "cpu", 2),
        (True, "cpu", 2),
        (False, "cpu", 1),
        (None, "meta", 1),
        (True, "meta", 2),
    ],
)
@pytest.mark.parametrize("fake", [False, True])
def test_how_often_a_function_is_called(enabled, device, count, fake):
    """Twice if recomputing, never so for fake tensors: a compiler decides itself."""
    calls = []

    def square(x: Tensor) -> Tensor:
        calls.append(x.shape)
        return x.square()

    with FakeTensorMode() if fake else torch.enable_grad():
        x = torch.ones(3, device=device, requires_grad=True)
        recompute(square, x, enabled).sum().backward()
    assert calls == [(3,)] * (1 if fake else count)
