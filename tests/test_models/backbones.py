"""Small backbones and images for the tests."""

import torch
from mmengine.registry import MODELS

import ravlt


def build(arch="test", seed: int = 0, **kwargs) -> ravlt.RAVLT:
    torch.manual_seed(seed)
    return MODELS.build(dict(type="RAVLT", arch=arch, **kwargs))


def images(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))
