"""Every attention core on the device against its twin in float64."""

import copy

import pytest
import torch

from helpers.backbones import images, largest_error
from helpers.core_cases import build_shaken, draw, draw_input, gain_of
from helpers.core_twins import TWINS
from helpers.kernels import DEVICE, DTYPES, autocast, rounding

HW = (7, 9)
# Beside inputs and outputs, the fused kernel's operands are in half precision: rotated
# queries and keys, probabilities, and the gradient of these.
SLACK = {"softmax": 4}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", TWINS)
def test_values_and_gradients_equal_the_twin(name, dtype):
    """Parameters stay in float32, as they do under autocast."""
    core = build_shaken(name).float().to(DEVICE)
    twin = copy.deepcopy(core).cpu().double()
    given = (*draw(HW), *draw_input(twin, HW))
    inputs = [t.detach().to(DEVICE, dtype).requires_grad_() for t in given]
    exact = [t.detach().cpu().double().requires_grad_() for t in inputs]
    with autocast(dtype):
        y = core(*inputs[:3], HW, *inputs[3:])
    q, k, v, *x = exact
    expected = TWINS[name](twin, q, k, v, HW, *x) @ v * gain_of(twin)
    weights = images(*y.shape).to(dtype)
    grads = torch.autograd.grad(y, [*inputs, *core.parameters()], weights.to(DEVICE))
    expected_grads = torch.autograd.grad(
        expected, [*exact, *twin.parameters()], weights.double()
    )
    bound = SLACK.get(name, 1) * rounding(dtype)
    labels = ["y", "q", "k", "v", "x"][: 1 + len(inputs)]
    labels += [label for label, _ in core.named_parameters()]
    pairs = zip(labels, (y, *grads), (expected, *expected_grads), strict=True)
    for label, got, wanted in pairs:
        assert largest_error(got.cpu(), wanted) < bound, label
