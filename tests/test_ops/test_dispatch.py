"""Which form an operator takes: seen by the operations that autograd records."""

import pytest
import torch
from torch import Tensor, nn

from helpers.operators import CALLS, Call
from ravlt.ops import plain_forms

ON_CPU = ("linear", "channels_first", "depthwise 3 residual", "depthwise 5")
ON_ALL = ("elu1", "rotate", "rala")
FAST = ON_CPU + ON_ALL


def recorded(call: Call, *inputs: Tensor) -> list[str]:
    """Name the operations behind a result, the last one first."""
    y = call.run(*inputs)  # some nodes live as long as their result
    nodes = [y.grad_fn]
    for node in nodes:
        parents = (parent for parent, _ in node.next_functions if parent)
        nodes += [parent for parent in parents if parent not in nodes]
    return [node.name() for node in nodes]


def moved(call: Call, device: str) -> list[Tensor]:
    return [x.detach().to(device).requires_grad_() for x in call.inputs()]


@pytest.mark.parametrize("name", FAST)
def test_the_form_that_is_picked(name):
    """The fast form also applies to parameters; the plain one is there on request."""
    call = CALLS[name]
    inputs = call.inputs()
    with plain_forms():
        plain = recorded(call, *inputs)
        on_meta = recorded(call, *moved(call, "meta"))
    fast = recorded(call, *inputs)
    assert fast != plain
    assert recorded(call, *map(nn.Parameter, inputs)) == fast
    assert (recorded(call, *moved(call, "meta")) == on_meta) is (name in ON_CPU)


@pytest.mark.parametrize("name", ["linear without bias", "depthwise 3"])
def test_operators_with_one_form(name):
    call = CALLS[name]
    with plain_forms():
        plain = recorded(call, *call.inputs())
    assert recorded(call, *call.inputs()) == plain


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_values_without_gradients(call):
    """Some forms then work in place: on copies, never on their inputs."""
    inputs = call.inputs()
    before = [x.detach().clone() for x in inputs]
    with plain_forms():
        expected = call.run(*inputs).detach()
    with torch.no_grad():
        got = call.run(*inputs)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-11)
    assert all(map(torch.equal, inputs, before))
