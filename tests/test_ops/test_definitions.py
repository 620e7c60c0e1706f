"""Operators against their formulas, written by hand."""

import cmath
import math

import pytest
import torch
import torch.nn.functional as F

from helpers.backbones import images
from helpers.core_twins import TWINS
from helpers.operators import CALLS, HW
from ravlt import ops
from ravlt.models.attention import build_core
from ravlt.ops.depthwise import depthwise_conv
from ravlt.ops.elu1 import elu1, elu1_
from ravlt.ops.rala.chunked import rala_
from ravlt.ops.rotary import rotary_frequencies, rotary_tables, rotate, rotate_


def test_frequencies_include_both_ends():
    theta = rotary_frequencies(64, dtype=torch.float64).tolist()
    assert len(theta) == 16
    assert theta[0] == 1.0
    assert theta[-1] == pytest.approx(1e-4, rel=1e-12)
    ratios = [b / a for a, b in zip(theta, theta[1:], strict=False)]
    assert ratios == pytest.approx([1e-4 ** (1 / 15)] * 15, rel=1e-12)
    assert rotary_frequencies(4).tolist() == [1.0]


@pytest.mark.parametrize("plain", [False, True])
def test_rotation_acts_on_adjacent_pairs(plain):
    x = images(2, 3, 12, 8).double()
    y = rotate(x, (3, 4))
    if plain:
        with ops.plain_forms():
            y = rotate(x, (3, 4))
    theta = [10000.0**-m for m in range(2)]
    for n in range(12):
        for pair in range(4):
            position = n // 4 if pair < 2 else n % 4
            turn = cmath.exp(1j * position * theta[pair % 2])
            a, b = x[..., n, 2 * pair], x[..., n, 2 * pair + 1]
            torch.testing.assert_close(
                y[..., n, 2 * pair], a * turn.real - b * turn.imag
            )
            torch.testing.assert_close(
                y[..., n, 2 * pair + 1], b * turn.real + a * turn.imag
            )


def test_scores_depend_on_offsets_only():
    q, k = images(2, 16).double()
    grid = (9, 11)
    rotated_q = rotate(q.expand(1, 1, 99, 16), grid).view(9, 11, 16)
    rotated_k = rotate(k.expand(1, 1, 99, 16), grid).view(9, 11, 16)
    base = rotated_q[2, 3] @ rotated_k[4, 1]
    shifted = rotated_q[5, 8] @ rotated_k[7, 6]
    torch.testing.assert_close(base, shifted, rtol=0, atol=1e-12)
    assert abs(base - rotated_q[2, 3] @ rotated_k[4, 2]) > 1e-3


@pytest.mark.parametrize("plain", [False, True])
def test_rotation_in_float32_is_precise_at_large_positions(plain):
    x = images(1, 1, 336, 64)
    exact = rotate(x.double(), (336, 1))
    got = rotate(x, (336, 1))
    if plain:
        with ops.plain_forms():
            got = rotate(x, (336, 1))
    assert (got - exact).abs().max() < 3e-4  # angles of 335, rounded to 2^-16


@pytest.mark.parametrize("plain", [False, True])
def test_rotation_in_place_of_some_rows(plain):
    grid = (5, 4)
    # As in the layer, the memory order is tokens, heads, channels.
    x = images(2, 20, 3, 8).double().transpose(1, 2)
    before = x.clone()
    expected = rotate(x, grid)
    torch.testing.assert_close(x, before, rtol=0, atol=0)
    rows = x[:, :, 8:16]
    tables = rotary_tables(x, grid)
    if plain:
        with ops.plain_forms():
            tables = rotary_tables(x, grid)
    assert tables[0].is_complex() is not plain
    assert rotate_(rows, tables[0][2:4], tables[1]) is rows
    torch.testing.assert_close(rows, expected[:, :, 8:16], rtol=0, atol=1e-14)
    for rest in (slice(8), slice(16, None)):
        torch.testing.assert_close(x[:, :, rest], before[:, :, rest], rtol=0, atol=0)


@pytest.mark.parametrize("plain", [False, True])
def test_elu1(plain):
    x = torch.tensor([-90.0, -30.0, -3.0, -0.1, 0.0, 0.1, 2.0, 50.0]).requires_grad_()
    y = elu1(x)
    if plain:
        with ops.plain_forms():
            y = elu1(x)
    expected = [math.exp(min(v, 0.0)) + max(v, 0.0) for v in x.tolist()]
    assert y.tolist() == pytest.approx(expected, rel=1e-6)
    assert y.min() > 0
    y.sum().backward()
    slopes = [math.exp(min(v, 0.0)) for v in x.tolist()]
    assert x.grad.tolist() == pytest.approx(slopes, rel=1e-6)
    inside = x.detach().clone()
    torch.testing.assert_close(elu1_(inside), y.detach(), rtol=1e-6, atol=0)


@pytest.mark.parametrize("hw", [(4, 5), (1, 1), (2, 9)], ids=str)
@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("size", [3, 5, 7])
def test_depthwise_convolution(size, residual, hw):
    x, weight, bias = (
        images(*shape).double().requires_grad_()
        for shape in ((2, *hw, 6), (6, 1, size, size), (6,))
    )
    y = F.conv2d(x.permute(0, 3, 1, 2), weight, bias, padding=size // 2, groups=6)
    expected = y.permute(0, 2, 3, 1) + residual * x
    got = depthwise_conv(x, weight, bias, residual)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)
    grads = [
        torch.autograd.grad((out * out.cos()).sum(), (x, weight, bias))
        for out in (got, expected)
    ]
    torch.testing.assert_close(*grads, rtol=1e-12, atol=1e-11)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("autocast", [False, True])
def test_the_residual_is_not_rounded_into_the_kernel(dtype, autocast):
    """A kernel that includes the identity has a gain error for each channel.

    1 + w in bfloat16 has a spacing of 2^-7. Half precision may round the convolution
    and the result, but this error would exceed both.
    """
    x, weight = images(4, 20, 20, 32), 0.02 * images(32, 1, 3, 3)
    exact = depthwise_conv(x.double(), weight.double(), residual=True)
    with torch.autocast("cpu", dtype, enabled=autocast):
        given = (x, weight) if autocast else (x.to(dtype), weight.to(dtype))
        got = depthwise_conv(*given, residual=True).double()
    # The mean over a channel of (got - exact) / exact would be its gain error.
    gain = (got * exact).sum((0, 1, 2)) / exact.square().sum((0, 1, 2)) - 1
    assert gain.abs().max() < torch.finfo(dtype).eps / 20
    if autocast:  # the residual stays in float32
        own = got - x.double()
        assert (own - (exact - x)).abs().max() < 4 * torch.finfo(dtype).eps * 0.1


@pytest.mark.parametrize("residual", [False, True])
def test_depthwise_convolution_leaves_the_kernel(residual):
    call = CALLS["depthwise 3 residual" if residual else "depthwise 3"]
    x, weight, bias = call.inputs()
    before = weight.detach().clone()
    with torch.no_grad():
        call.run(x, weight, bias)
    assert torch.equal(weight, before)


@pytest.mark.parametrize("hw", [HW, (1, 5), (6, 1)], ids=str)
@pytest.mark.parametrize("rope", [False, True])
@pytest.mark.parametrize("name", ["rala", "linear"])
@pytest.mark.parametrize("rows", [1, 2, 100])
def test_rala_in_chunks(name, rope, hw, rows):
    # As in the layer, the memory order is tokens, heads, channels.
    memory = images(3, 2, hw[0] * hw[1], 2, 8).double().transpose(2, 3)
    q, k, v = memory.clone()
    core = build_core(dict(type=name, rope=rope), 16, 2)
    if rope is (name == "rala"):  # the settings of the twins
        expected = TWINS[name](core, q, k, v, hw) @ v
    else:
        expected = core.dense(q, k, v, hw) @ v
    chunks = [(top, min(top + rows, hw[0])) for top in range(0, hw[0], rows)]
    got = rala_(*memory, hw, chunks, rope=rope, reweight=name == "rala")
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-13)
    assert got.data_ptr() == memory.data_ptr()
    assert torch.equal(memory[2], v)
