"""Gradients of the network in float64 against the reference network."""

import pytest
import torch
import torch.nn.functional as F

from helpers.backbones import build, images, randomize
from helpers.reference_ravlt import ReferenceRAVLT
from ravlt.models.ravlt import ConvFFN


@pytest.fixture
def double():
    """Make float64 the default dtype during a test."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("recompute", [None, True, False])
@pytest.mark.parametrize("train", [False, True])
def test_feed_forward_network(train, recompute):
    torch.manual_seed(0)
    layer = ConvFFN(6, 10, recompute).double().train(train)
    x = images(2, 4, 5, 6).double().requires_grad_()
    hidden = F.gelu(layer.fc1(x)).permute(0, 3, 1, 2)
    conv = layer.dwconv
    local = F.conv2d(hidden, conv.weight, conv.bias, padding=1, groups=10)
    expected = layer.fc2((hidden + local).permute(0, 2, 3, 1))
    weights = images(*expected.shape).double()
    inputs = [x, *layer.parameters()]
    got = layer(x)
    grads = [torch.autograd.grad((y * weights).sum(), inputs) for y in (got, expected)]
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(*grads, rtol=1e-12, atol=1e-11)


def run(forward, model, x) -> tuple[tuple, dict]:
    x = x.clone().requires_grad_()
    model.zero_grad()
    outs = forward(x)
    sum((out * (i + out).cos()).sum() for i, out in enumerate(outs)).backward()
    grads = {name: p.grad.clone() for name, p in model.named_parameters()}
    return tuple(out.detach() for out in outs), grads | {"pixels": x.grad}


def agree(results, expected) -> None:
    outs, grads = results
    expected_outs, expected_grads = expected
    torch.testing.assert_close(outs, expected_outs, rtol=1e-9, atol=1e-9)
    assert grads.keys() == expected_grads.keys()
    for name, grad in expected_grads.items():
        # A batch norm with batch statistics removes the bias before it, whose gradient
        # is rounding noise.
        size = max(grad.abs().max().item(), 1.0)
        torch.testing.assert_close(
            grads[name], grad, rtol=0, atol=1e-10 * size, msg=name
        )


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("attn_types", ["rala", "softmax", None])
@pytest.mark.parametrize("size", [(64, 96), (37, 45)], ids=str)
def test_the_network_equals_its_straightforward_twin(double, attn_types, train, size):
    kwargs = {} if attn_types is None else {"attn_types": attn_types}
    model = randomize(build(drop_path_rate=0.0, **kwargs).double()).train(train)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    x = images(2, 3, *size).double()
    got = run(model, model, x)
    buffers = {name: value.clone() for name, value in model.named_buffers()}
    assert any(not torch.equal(state[k], v) for k, v in buffers.items()) is train
    model.load_state_dict(state)
    agree(got, run(ReferenceRAVLT(model), model, x))
    torch.testing.assert_close(dict(model.named_buffers()), buffers)


@pytest.mark.parametrize("with_cp", [False, True])
def test_drop_path_skips_the_same_samples_as_in_the_twin(double, with_cp):
    model = randomize(build(drop_path_rate=0.5, with_cp=with_cp).double()).train()
    x = images(4, 3, 32, 32).double()
    results = []
    for forward in (model, ReferenceRAVLT(model)):
        torch.manual_seed(5)
        results.append(run(forward, model, x))
    agree(*results)
    torch.manual_seed(6)
    others, _ = run(model, model, x)
    assert (others[3] - results[0][0][3]).abs().max() > 0.1
