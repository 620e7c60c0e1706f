"""The attention layers of each paper against their formulas in float64."""

import math

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor

from helpers.backbones import build, error, images, randomize
from helpers.core_twins import TWINS, copied_in_space, products, rms, short_long
from ravlt.errors import RAVLTError
from ravlt.inference.fold import fold_attention
from ravlt.models.attention import CORES
from ravlt.models.layers import ChannelLayerNorm
from ravlt.models.ravlt import build_attention

C, HEADS = 32, 2
NAMES = sorted(set(CORES) - {"rala"})
GRID = (14, 14)  # the grid of FLatten's table, which is then not resized


def paper(name: str, **options) -> torch.nn.Module:
    spec = dict(type=name, profile="paper", **options)
    return randomize(build_attention(spec, C, HEADS)).double().eval()


def linear(layer, x: Tensor) -> Tensor:
    y = x @ layer.weight.flatten(1).T
    return y if layer.bias is None else y + layer.bias


def heads(x: Tensor, count: int = HEADS) -> Tensor:
    b, h, w, c = x.shape
    return x.reshape(b, h * w, count, c // count).permute(0, 2, 1, 3)


def joined(y: Tensor, hw: tuple[int, int]) -> Tensor:
    b, h, n, d = y.shape
    return y.permute(0, 2, 1, 3).reshape(b, *hw, h * d)


def taps(x: Tensor, kernel: Tensor) -> Tensor:
    """Convolve depthwise, zero-padded, one tap at a time; kernel (C, 1, k, k)."""
    size = kernel.shape[-1]
    reach = size // 2
    height, width = x.shape[1:3]
    padded = x.new_zeros(len(x), height + 2 * reach, width + 2 * reach, x.shape[3])
    padded[:, reach : reach + height, reach : reach + width] = x
    return sum(
        padded[:, i : i + height, j : j + width] * kernel[:, 0, i, j]
        for i in range(size)
        for j in range(size)
    )


def sigmoid(x: Tensor) -> Tensor:
    return 1 / (1 + (-x).exp())


def silu(x: Tensor) -> Tensor:
    return x * sigmoid(x)


def plain(layer, name: str, x: Tensor, k_more=0.0, local=lambda v: 0.0) -> Tensor:
    hw = x.shape[1:3]
    q, k, v = linear(layer.qkv, x).chunk(3, -1)
    parts = heads(q), heads(k + k_more), heads(v)
    if name == "fixation":
        parts = parts[0], *(copied_in_space(part, hw) for part in parts[1:])
        a = TWINS[name](layer.core, *parts, hw)
    elif name == "softmax":  # TWINS has the core of the gated layer, with RoPE
        a = products(*parts[:2]) / math.sqrt(parts[0].shape[-1])
        a = a.exp() / a.exp().sum(-1, keepdim=True)
    else:
        a = TWINS[name](layer.core, *parts, hw)
    return linear(layer.proj, joined(a @ parts[2], hw) + local(v))


def focused(layer, name: str, x: Tensor) -> Tensor:
    table = layer.positions.permute(0, 2, 3, 1)
    kernel = layer.dwc.weight.repeat(HEADS, 1, 1, 1)
    bias = layer.dwc.bias.repeat(HEADS)
    return plain(layer, name, x, table, lambda v: taps(v, kernel) + bias)


def vicinity(layer, name: str, x: Tensor) -> Tensor:
    first, second = layer.preserve[0], layer.preserve[2]
    pooled = x.flatten(1, 2).mean(1)
    s = sigmoid(linear(second, linear(first, pooled).clamp(min=0)))
    return plain(layer, name, x) * (1 + s[:, None, None])


def gla(layer, name: str, x: Tensor) -> Tensor:
    hw = x.shape[1:3]
    local = taps(x, layer.local.weight)
    q, k, v = linear(layer.qkv, local).split((C // 2, C // 2, C), -1)
    parts = heads(q), heads(k), heads(v)
    y = TWINS["gla"](layer.core, *parts, hw, local) @ parts[2] * layer.core.gain
    norm = heads(local)
    norm = norm / (norm.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    share = sigmoid(linear(layer.mixing, local))
    mixed = joined(y, hw) * share + joined(norm * layer.local_gain, hw) * (1 - share)
    return linear(layer.proj, mixed)


def chela(layer, name: str, x: Tensor) -> Tensor:
    hw = x.shape[1:3]
    u = short_long(layer.low, silu(short_long(layer.high, x)))
    q, k, v = (heads(part) for part in linear(layer.qkv, u).chunk(3, -1))
    y = TWINS["norm"](layer.core, q, k, v, hw) @ v
    torch.testing.assert_close(rms(y), torch.ones_like(rms(y)))
    return linear(layer.proj, joined(y, hw) * silu(linear(layer.gate, u))) + u


LAYERS = dict(focused=focused, vicinity=vicinity, gla=gla, chela=chela)


def twin(layer, name: str, x: Tensor) -> Tensor:
    return LAYERS.get(name, plain)(layer, name, x)


def tokens(*hw: int) -> Tensor:
    return images(2, *hw, C).double().requires_grad_()


@pytest.mark.parametrize("name", NAMES)
def test_layer_is_its_formula(name):
    layer, x = paper(name), tokens(*GRID)
    got, expected = layer(x), twin(layer, name, x)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-10)
    weights = torch.randn_like(got)
    wanted = [x, *layer.parameters()]
    grads = [torch.autograd.grad((y * weights).sum(), wanted) for y in (got, expected)]
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-9)
        assert b.abs().max() > 0


@pytest.mark.parametrize("hw", [(5, 9), (1, 6), (6, 1), (1, 1)], ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_other_grids(name, hw):
    """A constant position table stays constant when it is resized."""
    layer, x = paper(name), tokens(*hw)
    if name == "focused":
        layer.positions.data[:] = layer.positions.data[..., :1, :1]
        table = layer.positions[:, :, :1, :1].permute(0, 2, 3, 1)
        local = taps(
            linear(layer.qkv, x).chunk(3, -1)[2],
            layer.dwc.weight.repeat(HEADS, 1, 1, 1),
        )
        bias = layer.dwc.bias.repeat(HEADS)
        expected = plain(layer, name, x, table, lambda v: local + bias)
    else:
        expected = twin(layer, name, x)
    torch.testing.assert_close(layer(x), expected, rtol=0, atol=1e-10)


def test_positions_are_resized():
    """The interpolation is bicubic and equals OpenCV's."""
    layer = paper("focused")
    table = layer.positions.detach().permute(0, 2, 3, 1)
    assert layer._resized(GRID).equal(table)
    expected = cv2.resize(table[0].numpy(), (30, 20), interpolation=cv2.INTER_CUBIC)
    got = layer._resized((20, 30))[0].detach().numpy()
    assert np.abs(got - expected).max() < 1e-5  # OpenCV has float32 weights


D = C // HEADS
COUNTS = {
    "focused": 4 * C**2 + 4 * C + C + 14 * 14 * C + 26 * D,
    "vicinity": 3 * (C**2 + C) // 2 + C**2 // 2 + C + 2 * C**2,
    "gla": 4 * C**2 + C + 9 * C + 2 * D + (16 * C + 17 * C),
    "chela": (9 + 1 + 169 + 9) * C + 8 * C + 5 * (C**2 + C),
    "hedgehog": 4 * C**2 + 4 * C + 2 * HEADS * (D**2 + D),
    "fixation": 4 * C**2 + 4 * C + 2 * (3 * D**2 + D),
}


@pytest.mark.parametrize("name", NAMES)
def test_parameters(name):
    count = sum(p.numel() for p in paper(name).parameters())
    assert count == COUNTS.get(name, 4 * C**2 + 4 * C)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("case", ["zero", "negative", "large", "constant"])
def test_finite_in_half_precision(name, case):
    layer = paper(name).float().train()
    x = images(2, 9, 10, C)
    x = {"zero": 0 * x, "negative": -x.abs(), "large": 1e4 * x, "constant": 0 * x + 3}[
        case
    ].requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x)
        (y.float() / 1e4).square().mean().backward()
    assert y.isfinite().all() and x.grad.isfinite().all()
    assert all(p.grad.isfinite().all() for p in layer.parameters())


@pytest.mark.parametrize("name", NAMES)
def test_folds_change_nothing(name):
    layer = paper(name).float()
    norm, x = randomize(ChannelLayerNorm(C)), images(2, 9, 10, C)
    with torch.no_grad():
        expected = layer(norm(x))
        fold_attention(norm, layer)
        assert error(layer(norm(x)), expected) < 1e-5


@pytest.mark.parametrize("name", NAMES)
def test_in_a_network(name):
    """All parameters get gradients; folding keeps outputs and removes batch norms."""
    model = build(attn_types=dict(type=name, profile="paper")).train()
    x = images(2, 3, 64, 96)
    sum(y.square().mul(y).sum() for y in model(x)).backward()
    for key, parameter in model.named_parameters():
        assert parameter.grad.abs().max() > 0, key
    model.eval()
    with torch.no_grad():
        before = model(x)
        after = model.switch_to_deploy()(x)
    for a, b in zip(after, before, strict=True):
        assert error(a, b) < 1e-4
    assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in model.modules())


def test_a_mechanism_registered_from_outside(monkeypatch):
    monkeypatch.setitem(CORES, "mine", type("Mine", (CORES["linear"],), {}))
    for profile in ("gated", "paper"):
        layer = build_attention(dict(type="mine", profile=profile), C, HEADS)
        assert type(layer.core) is CORES["mine"]
        with pytest.raises(RAVLTError, match="names the unknown attention 'yours'"):
            build_attention(dict(type="yours", profile=profile), C, HEADS)


def test_the_paper_layer_of_rala_is_the_gated_one():
    layer = build_attention(dict(type="rala", profile="paper"), C, HEADS)
    assert (
        layer.state_dict().keys()
        == build_attention("rala", C, HEADS).state_dict().keys()
    )
