"""Extreme images and attention inputs: outputs and gradients stay finite."""

import pytest
import torch
from torch import Tensor, nn

from helpers.backbones import build, images
from ravlt.models.attention import CORES


def constant(model: nn.Module) -> Tensor:
    """Return images of one colour each, whose variance within an image is zero."""
    return torch.tensor([1.5, -2.0])[:, None, None, None].expand(2, 3, 64, 96).clone()


def padding(model: nn.Module) -> Tensor:
    """Return images of zeros, as the hosts pad batches."""
    return torch.zeros(2, 3, 64, 96)


def bright(model: nn.Module) -> Tensor:
    return images(2, 3, 64, 96) * 1e4


def strong(model: nn.Module) -> Tensor:
    """Scale the input of every attention layer by 1e4."""
    for name, parameter in model.named_parameters():
        if ".norm1." in name:
            parameter.data.mul_(1e4)
    return images(2, 3, 64, 96)


def gradients(model: nn.Module, x: Tensor, dtype: torch.dtype | None) -> None:
    """Assert that outputs, and gradients of their mean squares, are finite."""
    x = x.requires_grad_()
    with torch.autocast("cpu", dtype=dtype, enabled=dtype is not None):
        outs = model(x)
    assert all(out.isfinite().all() for out in outs)
    sum(out.float().square().mean() for out in outs).backward()
    assert x.grad.isfinite().all()
    for name, parameter in model.named_parameters():
        assert parameter.grad.isfinite().all(), name
    for name, buffer in model.named_buffers():
        assert buffer.isfinite().all(), name


@pytest.mark.parametrize("dtype", [None, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", [constant, padding, bright, strong])
@pytest.mark.parametrize("attn_types", [None, *CORES])
def test_backbone_stays_finite(attn_types, case, dtype):
    """None is the released setting, with softmax in stages 3 and 4."""
    model = build(**({"attn_types": attn_types} if attn_types else {})).train()
    x = case(model)
    gradients(model, x, dtype)
    model.eval()  # with running statistics that include this batch
    with (
        torch.no_grad(),
        torch.autocast("cpu", dtype=dtype, enabled=dtype is not None),
    ):
        assert all(out.isfinite().all() for out in model(x))


NARROW = dict(embed_dims=(16, 16, 16, 16), depths=(1, 1, 1, 1), num_heads=(1, 1, 1, 1))


def scaled_gradients(attn_types, dtype, module: bool) -> Tensor:
    """Compute gradients at a detection size, with a loss scale of 2^16.

    An 800 x 1344 image has 67,200 tokens in stage 1.
    """
    model = build(NARROW, **({"attn_types": attn_types} if attn_types else {})).train()
    x = images(1, 3, 800, 1344)
    if module:
        model, x = model.to(dtype), x.to(dtype)
    mixed = dtype is not None and not module
    with torch.autocast("cpu", dtype=dtype, enabled=mixed):
        outs = model(x)
    torch.manual_seed(1)
    loss = sum((out.float() * torch.randn(out.shape)).mean() for out in outs)
    (loss * 2.0**16).backward()
    return torch.cat([p.grad.float().flatten() for p in model.parameters()])


@pytest.mark.integration
@pytest.mark.parametrize("module", [False, True], ids=["autocast", "module"])
@pytest.mark.parametrize(
    "dtype",
    [
        torch.bfloat16,
        # Convolutions in float16 take ten seconds on a CPU.
        pytest.param(torch.float16, marks=pytest.mark.slow),
    ],
    ids=str,
)
@pytest.mark.parametrize("attn_types", [None, "rala"])
def test_gradients_in_half_precision_at_the_size_of_detection(
    attn_types, dtype, module
):
    got = scaled_gradients(attn_types, dtype, module)
    assert got.isfinite().all()
    exact = scaled_gradients(attn_types, None, False)
    assert (got - exact).norm() / exact.norm() < 4 * torch.finfo(dtype).eps
