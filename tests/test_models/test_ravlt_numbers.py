"""Outputs of the backbone: against a twin, at any size, in half precision."""

import copy

import pytest
import torch
from torch import nn

import ravlt
from helpers.backbones import build, images, randomize


def twin_forward(model: ravlt.RAVLT, x: torch.Tensor) -> list[torch.Tensor]:
    """Compute the network from the paper's text, channels-first, by convolutions."""
    f = nn.functional

    def norm(layer, x):
        mean, var = x.mean(1, keepdim=True), x.var(1, keepdim=True, correction=0)
        w, b = layer.norm.weight[:, None, None], layer.norm.bias[:, None, None]
        return (x - mean) / (var + 1e-6).sqrt() * w + b

    def conv(layer, x, **kwargs):
        return f.conv2d(x, layer.weight, layer.bias, **kwargs)

    def attention(layer, x):
        b, c, h, w = x.shape
        q, k, v, o = conv(layer.qkvo, x).chunk(4, 1)
        lepe = conv(layer.lepe, v, padding=2, groups=c)
        heads = [t.reshape(b, layer.num_heads, -1, h * w).mT for t in (q, k, v)]
        y = layer.core.dense(*heads, (h, w)) @ heads[2]
        return conv(layer.proj, (y.mT.reshape(b, c, h, w) + lepe) * o)

    def ffn(layer, x):
        x = f.gelu(conv(layer.fc1, x))
        x = x + conv(layer.dwconv, x, padding=1, groups=x.shape[1])
        return conv(layer.fc2, x)

    x = model.patch_embed.proj(x)
    outs = []
    for i, stage in enumerate(model.layers):
        for block in stage.blocks:
            x = x + conv(block.pos, x, padding=1, groups=x.shape[1])
            x = x + block.gamma_1 * attention(block.attn, norm(block.norm1, x))
            x = x + block.gamma_2 * ffn(block.ffn, norm(block.norm2, x))
        if i in model.out_indices:
            outs.append(norm(model.extra_norms[str(i)], x))
        if stage.downsample is not None:
            x = conv(stage.downsample.reduction, x, stride=2, padding=1)
            x = stage.downsample.norm(x)
    return outs


@pytest.mark.parametrize("attn_types", ["rala", "linear", "softmax", None])
@pytest.mark.parametrize("size", [(64, 96), (37, 45)], ids=str)
def test_the_network_equals_its_channels_first_twin(attn_types, size):
    kwargs = {} if attn_types is None else {"attn_types": attn_types}
    model = randomize(build(**kwargs).double()).eval()
    x = images(2, 3, *size).double()
    for got, expected in zip(model(x), twin_forward(model, x), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("size", [(1, 1), (1, 70), (33, 2), (31, 65)], ids=str)
def test_any_size(size):
    model = build().eval()
    outs = model(images(1, 3, *size))
    for i, (out, dim) in enumerate(zip(outs, model.embed_dims, strict=True)):
        stride = 4 * 2**i
        assert out.shape == (1, dim, -(-size[0] // stride), -(-size[1] // stride))
        mean = out.mean(1)  # output norms start with scale 1 and shift 0
        torch.testing.assert_close(mean, torch.zeros_like(mean), rtol=0, atol=1e-5)


def test_no_images():
    outs = build().eval()(images(0, 3, 64, 96))
    assert [tuple(out.shape) for out in outs] == [
        (0, 16, 16, 24),
        (0, 32, 8, 12),
        (0, 48, 4, 6),
        (0, 64, 2, 3),
    ]


def test_outputs_are_contiguous_down_to_roi_align():
    """mmcv's RoIAlign reads channels-last memory as if it were contiguous."""
    ops = pytest.importorskip("mmcv.ops")
    model = build().eval()
    assert all(out.is_contiguous() for out in model(images(1, 3, 64, 96)))
    features = model(images(2, 3, 64, 96))
    assert all(out.is_contiguous() for out in features)
    lateral = nn.Conv2d(features[0].shape[1], 8, 1)
    pyramid = lateral(features[0])
    rois = torch.tensor([[0, 4.0, 4.0, 30.0, 40.0], [1, 10.0, 5.0, 60.0, 50.0]])
    align = ops.RoIAlign(7, 0.25, 0)
    expected = align(pyramid.clone(memory_format=torch.contiguous_format), rois)
    torch.testing.assert_close(align(pyramid, rois), expected)


def test_a_sample_does_not_see_its_batch():
    model = build().eval()
    x = images(3, 3, 40, 56)
    for together, alone in zip(model(x), model(x[1:2]), strict=True):
        torch.testing.assert_close(together[1:2], alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("out_indices", [(0, 1, 2, 3), (1, 2, 3), (0, 2), (1,)])
def test_outputs_and_gradients_of_out_indices(out_indices):
    full = build().eval()
    model = build(out_indices=out_indices).eval()
    model.load_state_dict(full.state_dict(), strict=False)
    x = images(2, 3, 64, 64)
    outs, all_outs = model(x), full(x)
    for i, out in zip(out_indices, outs, strict=True):
        torch.testing.assert_close(out, all_outs[i], rtol=0, atol=0)
    sum(out.square().sum() for out in outs).backward()
    unused = [name for name, p in model.named_parameters() if p.grad is None]
    assert unused == []


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_autocast_stays_finite_at_the_size_of_detection(dtype):
    """800 x 1344 images have 67,200 tokens in stage 1: naive half-precision sums fail.

    Attention therefore sums in float32.
    """
    arch = dict(
        embed_dims=(16, 16, 16, 16), depths=(1, 1, 1, 1), num_heads=(1, 1, 1, 1)
    )
    model = build(arch, attn_types="rala").eval()
    for stage in model.layers:  # far from initialisation, with strong attention
        stage.blocks[0].attn.qkvo.weight.data.mul_(20)
    x = images(1, 3, 800, 1344)
    with torch.no_grad():
        exact = model(x)
        with torch.autocast("cpu", dtype=dtype):
            outs = model(x)
    for out, reference in zip(outs, exact, strict=True):
        assert torch.isfinite(out).all()
        error = (out.float() - reference).norm() / reference.norm()
        assert error < 16 * torch.finfo(dtype).eps


def test_half_module_equals_float_within_rounding():
    model = build().eval()
    x = images(1, 3, 64, 96)
    exact = model(x)
    half = copy.deepcopy(model).bfloat16()
    for out, reference in zip(half(x.bfloat16()), exact, strict=True):
        assert out.dtype == torch.bfloat16
        assert (out.float() - reference).norm() / reference.norm() < 0.05


def test_autocast_leaves_the_residual_stream():
    """It rounds branches only: tokens in half precision are widened first."""
    block = randomize(build(), mild=True).eval().layers[0].blocks[0]
    x = images(2, 9, 10, 16).bfloat16()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        got, expected = block(x), block(x.float())
    assert got.dtype == torch.float32
    assert torch.equal(got, expected)
