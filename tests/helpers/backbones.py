"""Small backbones and images for the tests."""

import pytest
import torch
from mmengine.registry import MODELS
from torch import Tensor, nn

import ravlt
from ravlt.models import layers


def build(arch="test", seed: int = 0, **kwargs) -> ravlt.RAVLT:
    torch.manual_seed(seed)
    return MODELS.build(dict(type="RAVLT", arch=arch, **kwargs))


def images(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def randomize(model: nn.Module, mild: bool = False) -> nn.Module:
    """Set every parameter and statistic to a random value, so that no error is hidden.

    Args:
        model: Changed in place.
        mild: Whether products keep the scale of their inputs, so that rounding errors
            stay small in float32.
    """
    generator = torch.Generator().manual_seed(3)
    for name, value in model.state_dict().items():
        if value.is_floating_point() and not name.endswith("angle"):
            noise = torch.randn(value.shape, generator=generator, dtype=value.dtype)
            positive = name.endswith("running_var")
            is_product = name.endswith("weight") and value.ndim == 4
            spread = value[0].numel() ** -0.5 if mild and is_product else 0.3
            value.copy_(noise.abs() + 0.5 if positive else noise * spread)
    return model


def error(got: torch.Tensor, expected: torch.Tensor) -> float:
    """Compute the norm of the difference over the norm of the expected tensor."""
    assert got.shape == expected.shape
    expected = expected.double()
    return ((got.double() - expected).norm() / expected.norm()).item()


def largest_error(got: torch.Tensor, expected: torch.Tensor) -> float:
    """Compute the largest difference over the largest magnitude that is expected.

    It shows a single wrong token of a large grid, which a norm over all would hide.
    """
    assert got.shape == expected.shape
    expected = expected.double()
    return ((got.double() - expected).abs().max() / expected.abs().max()).item()


def skip_initialization(patch: pytest.MonkeyPatch) -> None:
    """Leave the weights of models of real size as they are: it takes seconds each."""

    def leave(tensor: Tensor, *args, **kwargs) -> Tensor:
        return tensor

    for name in ("kaiming_uniform_", "kaiming_normal_"):
        patch.setattr(nn.init, name, leave)
    patch.setattr(layers, "trunc_normal_", leave)
