"""Fixtures of the tests of losses and weights that are not finite."""

import warnings

import pytest
import torch
from torch import nn

from ravlt.training.guards import finite, finite_steps
from ravlt.training.guards.finite_steps import FiniteAmpOptimWrapper


@pytest.fixture
def said(monkeypatch) -> list[str]:
    lines = []
    for module in (finite, finite_steps):
        monkeypatch.setattr(
            module, "print_log", lambda line, level, **_: lines.append((level, line))
        )
    return lines


@pytest.fixture
def amp(monkeypatch):
    """The wrapper of mixed precision, which wants a GPU, on a CPU."""
    from mmengine.optim.optimizer import amp_optimizer_wrapper

    monkeypatch.setattr(amp_optimizer_wrapper, "is_cuda_available", lambda: True)

    def build(model: nn.Module, scale: float = 1024.0, **kwargs):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the scaler, without a GPU
            wrapper = FiniteAmpOptimWrapper(
                optimizer=optimizer, dtype="bfloat16", **kwargs
            )
        wrapper.loss_scaler = torch.amp.GradScaler("cpu", init_scale=scale)
        return wrapper

    return build
