"""Gradients in float64: of hand-written functions, and of the network as a whole."""

import pytest
import torch
import torch.nn.functional as F
from backbones import build, images, randomize
from torch.autograd import gradcheck, gradgradcheck

from ravlt.analysis.reference import ReferenceRAVLT
from ravlt.models.attention.cores.base import elu1, elu1_
from ravlt.models.attention.rope import _rotate_real, rotate
from ravlt.models.blocks import ConvFFN
from ravlt.models.depthwise import DepthwiseConv
from ravlt.models.layers import PointwiseConv


@pytest.fixture
def double():
    """The yardstick's tables are born in the default precision."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def draw(*shape: int) -> torch.Tensor:
    return images(*shape).double().requires_grad_()


def equal(got, expected, inputs) -> None:
    """Values, and gradients of a random sum of them."""
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)
    weights = images(*got.shape).double()
    grads = [torch.autograd.grad((y * weights).sum(), inputs) for y in (got, expected)]
    torch.testing.assert_close(*grads, rtol=1e-12, atol=1e-11)


def test_elu1():
    x = torch.tensor([-30.0, -3.0, -0.1, 0.1, 2.0, 50.0]).double().requires_grad_()
    assert gradcheck(elu1, x)
    assert gradgradcheck(elu1, x)
    equal(elu1(x), F.elu(x) + 1, x)
    inside = x.detach().clone()
    torch.testing.assert_close(elu1_(inside), elu1(x).detach(), rtol=0, atol=0)
    assert inside[-1] == 51


@pytest.mark.parametrize("hw", [(2, 3), (1, 4), (3, 1)], ids=str)
def test_rotate(hw):
    x = draw(2, 2, hw[0] * hw[1], 8)
    assert gradcheck(rotate, (x, hw))
    assert gradgradcheck(rotate, (x, hw))


@pytest.mark.parametrize("hw", [(5, 7), (1, 9), (1, 1)], ids=str)
def test_the_real_form_of_rotate(hw):
    x = draw(2, 3, hw[0] * hw[1], 12)
    equal(_rotate_real(x, hw), rotate(x, hw), x)


def test_rotate_leaves_its_input_and_takes_views():
    heads = draw(2, 15, 3, 8)
    x = heads.transpose(1, 2)
    before = x.detach().clone()
    equal(rotate(x, (3, 5)), rotate(x.contiguous(), (3, 5)), heads)
    assert torch.equal(x, before)


def depthwise(layer, x):
    """The plain convolution, in the layout of images."""
    y = F.conv2d(
        x.permute(0, 3, 1, 2),
        layer.weight,
        layer.bias,
        padding=layer.weight.shape[-1] // 2,
        groups=len(layer.weight),
    )
    return y.permute(0, 2, 3, 1)


@pytest.mark.parametrize("hw", [(4, 5), (1, 1), (2, 9)], ids=str)
@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("kernel_size", [3, 5, 7])
def test_depthwise_convolution(kernel_size, residual, hw):
    torch.manual_seed(0)
    layer = DepthwiseConv(6, kernel_size, residual=residual).double()
    x = draw(2, *hw, 6)

    def check(x, inputs):
        expected = depthwise(layer, x) + residual * x
        equal(layer(x), expected, inputs)

    check(x, [x, layer.weight, layer.bias])
    # Frozen input, or frozen parameters: the rest keeps its gradient.
    check(x.detach(), [layer.weight, layer.bias])
    check(x, [x])
    layer.requires_grad_(False)
    check(x, [x])


@pytest.mark.parametrize("kernel_size", [3, 5])
def test_depthwise_convolution_with_the_identity_folded_in(kernel_size):
    torch.manual_seed(0)
    layer = DepthwiseConv(6, kernel_size, residual=True).double()
    x = draw(2, 4, 5, 6)
    expected = x + depthwise(layer, x)
    layer.fold_identity()
    assert not layer.residual
    torch.testing.assert_close(layer(x), expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(depthwise(layer, x), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_pointwise_convolution(dtype):
    torch.manual_seed(0)
    layer = PointwiseConv(6, 9).to(dtype)
    x = draw(2, 4, 5, 6).to(dtype)
    inputs = [x, layer.weight, layer.bias]
    expected = F.conv2d(x.permute(0, 3, 1, 2), layer.weight, layer.bias)
    got, expected = layer(x), expected.permute(0, 2, 3, 1)
    grads = [torch.autograd.grad(y.square().sum(), inputs) for y in (got, expected)]
    torch.testing.assert_close(got, expected)
    torch.testing.assert_close(*grads, rtol=1e-5, atol=1e-5)


def test_recomputed_feed_forward_network():
    torch.manual_seed(0)
    layer = ConvFFN(6, 10).double()
    x = draw(2, 4, 5, 6)
    hidden = F.gelu(layer.fc1(x))
    expected = layer.fc2(hidden + depthwise(layer.dwconv, hidden))
    equal(layer(x), expected, [x, *layer.parameters()])


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
        # Before a batch norm of batch statistics, the bias has no gradient but noise.
        size = max(grad.abs().max().item(), 1.0)
        torch.testing.assert_close(
            grads[name], grad, rtol=0, atol=1e-10 * size, msg=name
        )


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("attn_types", ["rala", "softmax", None])
@pytest.mark.parametrize("size", [(64, 96), (37, 45)], ids=str)
def test_the_network_equals_the_yardstick(double, attn_types, train, size):
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
def test_drop_path_skips_the_same_samples_as_in_the_yardstick(double, with_cp):
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
