"""The host never waits for the GPU in a training step."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor, nn

from helpers.backbones import build, images
from helpers.host_models import build_host
from helpers.kernels import DEVICE, autocast
from helpers.tool_runs import DET, SEG

dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)


@contextmanager
def waits_forbidden() -> Iterator[None]:
    """Raise RuntimeError at every operation that waits for the GPU."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def train(model: nn.Module, run: Callable[[Tensor], Tensor], dtype) -> None:
    """Train two steps, the second one without waiting."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    x = images(2, 3, 64, 96).to(DEVICE)

    def step() -> None:
        optimizer.zero_grad()
        with autocast(dtype):
            outs = run(x)
        sum(out.float().square().mean() for out in outs).backward()
        optimizer.step()

    step()  # compiles, chooses algorithms, allocates the optimizer's states
    torch.cuda.synchronize()
    with waits_forbidden():
        step()


def test_waiting_is_an_error():
    x = torch.ones(1, device=DEVICE)
    with waits_forbidden(), pytest.raises(RuntimeError, match="synchroniz"):
        x.item()


@dtypes
@pytest.mark.parametrize("with_cp", [False, True])
def test_backbone(dtype, with_cp):
    model = build(drop_path_rate=0.3, with_cp=with_cp).to(DEVICE).train()
    train(model, model, dtype)


@dtypes
def test_inference(dtype):
    model = build().to(DEVICE).eval()
    with torch.no_grad(), autocast(dtype):
        model(images(1, 3, 64, 96).to(DEVICE))
        other = images(1, 3, 96, 160).to(DEVICE)
        model(other)
        with waits_forbidden():
            model(other)


@dtypes
@pytest.mark.parametrize("path", [DET, SEG], ids=["detector", "segmentor"])
def test_networks_of_the_hosts(path, dtype):
    """Backbone, neck and dense head; matching boxes and counting pixels wait."""
    model = build_host(path)
    head = model.rpn_head if path == DET else model.decode_head

    def run(x: Tensor) -> list[Tensor]:
        outs = head(model.extract_feat(x))
        return [outs] if path == SEG else [*outs[0], *outs[1]]

    train(model.to(DEVICE).train(), run, dtype)
