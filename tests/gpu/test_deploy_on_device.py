"""Folding for inference on the device."""

import copy

import pytest
import torch

from helpers.backbones import build, error, images, randomize
from helpers.kernels import DEVICE, DTYPES, autocast
from ravlt import switch_to_deploy


@pytest.mark.parametrize("attn_types", [None, "rala", "chela"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_folded_network_equals_the_trained_one(attn_types, dtype):
    """Folded weights are rounded once more; mixed precision rounds them anyway."""
    options = {} if attn_types is None else {"attn_types": attn_types}
    model = randomize(build(**options), mild=True).to(DEVICE).eval()
    folded = switch_to_deploy(copy.deepcopy(model))
    on_cpu = switch_to_deploy(copy.deepcopy(model).cpu()).state_dict()
    x = images(2, 3, 70, 94).to(DEVICE)
    with torch.no_grad():
        exact = copy.deepcopy(model).double()(x.double())
        with autocast(dtype):
            outs, plain = folded(x), model(x)
    for got, unfolded, wanted in zip(outs, plain, exact, strict=True):
        assert error(got, wanted) < max(1e-5, 2 * error(unfolded, wanted))
    for name, value in folded.state_dict().items():
        assert value.device.type == DEVICE, name
        assert error(value.cpu(), on_cpu[name]) < 1e-6 or not on_cpu[name].any(), name
