"""One training step of a detector and of a segmentor."""

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor

from helpers.backbones import error
from helpers.host_models import build_host
from helpers.kernels import DEVICE
from helpers.tool_runs import DET, SEG
from ravlt.data.random_batch import make_batch

# No proposal is suppressed or left out, and all of them are sampled: decisions that
# the last bit of a score can change.
EVERY_PROPOSAL = {
    "train_cfg.rpn.sampler.num": 4096,
    "train_cfg.rpn_proposal": dict(
        nms_pre=4096,
        max_per_img=4096,
        nms=dict(type="nms", iou_threshold=1.0),
        min_bbox_size=0,
    ),
    "train_cfg.rcnn.sampler.num": 8192,
}
CHANGES = {DET: EVERY_PROPOSAL, SEG: {"data_preprocessor.size": (64, 64)}}
hosts = pytest.mark.parametrize("path", [DET, SEG], ids=["detector", "segmentor"])


def step(path: Path, device: str, **backbone) -> tuple[dict, dict]:
    """Return the losses of random images, and the gradients of all parameters.

    Args:
        path: A config of the quickstart.
        device: Where the model lives.
        **backbone: Arguments of RAVLT.
    """
    changes = CHANGES[path] | {f"backbone.{k}": v for k, v in backbone.items()}
    model = build_host(path, changes)
    batch = make_batch(model, 2, (64, 64), train=True)
    model.train().to(device)
    torch.manual_seed(1)
    losses = model(**model.data_preprocessor(batch, True), mode="loss")
    total, values = model.parse_losses(losses)
    total.backward()
    grads = {name: p.grad.cpu() for name, p in model.named_parameters()}
    # One score that changes places changes the accuracy, which is beside the losses.
    return {name: float(v) for name, v in values.items() if "loss" in name}, grads


def joined(grads: Mapping[str, Tensor]) -> Tensor:
    return torch.cat([grad.flatten() for grad in grads.values()])


@hosts
def test_step_equals_that_of_the_cpu(path):
    """Ten layers each round by 1e-7 to 1e-6; batch norms of 8 values amplify it."""
    losses, grads = step(path, DEVICE)
    expected_losses, expected_grads = step(path, "cpu")
    assert losses == pytest.approx(expected_losses, rel=1e-4)
    assert grads.keys() == expected_grads.keys()
    assert error(joined(grads), joined(expected_grads)) < 1e-3


@hosts
def test_recomputed_blocks_give_equal_gradients(path):
    """Also with random numbers; sums by atomic additions come in any order."""
    losses, grads = step(path, DEVICE, drop_path_rate=0.3)
    saving_losses, saving_grads = step(path, DEVICE, drop_path_rate=0.3, with_cp=True)
    assert saving_losses == pytest.approx(losses, rel=1e-5)
    assert error(joined(saving_grads), joined(grads)) < 1e-5
    other_losses, _ = step(path, DEVICE)
    assert other_losses != pytest.approx(losses, rel=1e-6)  # drop path took part
