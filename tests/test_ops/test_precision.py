"""Sums over tokens run in float32, whatever autocast says."""

import pytest
import torch

from helpers.backbones import images
from helpers.operators import CALLS, HW
from ravlt.ops.rala import linear_attention_terms, rala
from ravlt.ops.residual import add_scaled


@pytest.mark.parametrize("grad", [False, True])
def test_autocast_changes_no_bit(grad):
    q, k, v = (x.detach() for x in CALLS["rala"].inputs(torch.float32))
    results = []
    for enabled in (False, True):
        with torch.set_grad_enabled(grad), torch.autocast("cpu", enabled=enabled):
            y = rala(q, k, v, HW)
            results.append((y, *linear_attention_terms(q, k, HW)))
    for got, expected in zip(*results, strict=True):
        assert torch.equal(got, expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_without_gradients(dtype):
    """Only inputs and outputs are rounded."""
    q, k, v = (x.detach() for x in CALLS["rala"].inputs(dtype))
    with torch.no_grad():
        got = rala(q, k, v, HW)
    expected = rala(q.double(), k.double(), v.double(), HW)
    assert got.dtype == dtype
    half_unit = 0.51 * torch.finfo(dtype).eps
    torch.testing.assert_close(got.double(), expected, rtol=half_unit, atol=1e-6)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_the_residual_sum_copies_no_branch(device):
    """The backward pass keeps the branch in half precision."""
    x, gamma = images(2, 3, 4).to(device), images(4).to(device).requires_grad_()
    branch = images(2, 3, 4).to(device, torch.bfloat16).requires_grad_()
    with torch.autocast(device, torch.bfloat16):
        y = add_scaled(x, gamma, branch)
    assert y.dtype == torch.float32
    assert y.grad_fn._saved_tensor2.dtype == torch.bfloat16
    torch.testing.assert_close(y, x + gamma * branch.float())
