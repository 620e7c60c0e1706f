"""Triton kernels against formulas in float64, values and gradients."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from helpers.backbones import build, error, images, randomize
from helpers.core_twins import dense_rala, turn
from helpers.kernels import DEVICE, INTERPRETED
from ravlt.ops import plain_forms
from ravlt.ops.depthwise import triton as depthwise
from ravlt.ops.rala import naive
from ravlt.ops.rala import triton as rala
from ravlt.ops.rotary import triton as rotary

pytestmark = [pytest.mark.usefixtures("kernels"), pytest.mark.kernels]

# The interpreter multiplies bfloat16 wrongly.
BOUNDS = {torch.float32: 1e-5, torch.float16: 2e-3}
if not INTERPRETED:
    BOUNDS[torch.bfloat16] = 2e-2
VARIANTS = pytest.mark.parametrize(
    ("rope", "reweight"),
    [(True, True), (False, True), (True, False), (False, False)],
    ids=["rala", "rala without rotation", "linear, rotated", "linear"],
)


def heads_of(product: Tensor, heads: int) -> list[Tensor]:
    """Split q, k and v from the product (B, N, 4 C), as the layer does: no copies."""
    return [
        t.unflatten(-1, (heads, -1)).transpose(1, 2)
        for t in product.chunk(4, dim=-1)[:3]
    ]


def draw(shape: tuple[int, ...], dtype: torch.dtype, scale: float = 1.0) -> Tensor:
    """Draw a tensor that requires gradients."""
    x = (scale * images(*shape)).to(DEVICE, dtype)
    return x.requires_grad_()


def twin_of_rala(q, k, v, hw, rope, reweight) -> Tensor:
    return dense_rala(None, q, k, v, hw, alpha_on=reweight, rope=rope) @ v


def compare(run, twin, inputs: list[Tensor], bound: float) -> None:
    """Compare a result and its gradients with those of a twin in float64."""
    y = run(*inputs)
    doubles = [x.detach().double().cpu().requires_grad_() for x in inputs]
    expected = twin(*doubles)
    weights = images(*y.shape)
    grads = torch.autograd.grad((y * weights.to(y)).sum(), inputs)
    expected_grads = torch.autograd.grad((expected * weights.double()).sum(), doubles)
    for got, wanted in zip((y, *grads), (expected, *expected_grads), strict=True):
        assert got.dtype in (y.dtype, torch.float32)
        assert got.shape == wanted.shape
        # Gradients near 0 are differences of terms of about 1.
        scale = wanted.abs().max().clamp(min=0.1)
        assert (got.double().cpu() - wanted).abs().max() < bound * scale


def check_rala(
    hw, heads, dim, batch=1, dtype=torch.float32, scale=1.0, shift=0.0, **options
):
    """Compare with the twin; ``shift`` is added to every second query."""
    options = dict(rope=True, reweight=True) | options
    product = draw((batch, hw[0] * hw[1], 4 * heads * dim), dtype, scale).detach()
    product[:, ::2, : heads * dim] += shift
    # Then keys' and values' gradients are multiplied as bfloat16.
    is_rounded = dtype == torch.float16 and dim > 64
    compare(
        lambda q, k, v: rala.rala(q, k, v, hw, **options),
        lambda q, k, v: twin_of_rala(q, k, v, hw, **options),
        [x.requires_grad_() for x in heads_of(product, heads)],
        2e-2 if is_rounded else BOUNDS[dtype],
    )


@VARIANTS
def test_rala(rope, reweight):
    check_rala((9, 13), heads=7, dim=16, rope=rope, reweight=reweight)


@pytest.mark.parametrize("dim", [4, 12, 64, 96, 128])
def test_rala_with_head_dimensions(dim):
    check_rala((5, 7), heads=1, dim=dim)


@pytest.mark.parametrize("hw", [(1, 1), (1, 31), (32, 1), (3, 11), (4, 16)])
def test_rala_around_the_size_of_a_tile(hw):
    check_rala(hw, heads=2, dim=8, batch=2)


@pytest.mark.parametrize("hw", [(127, 1), (8, 16), (3, 43), (19, 29)])
@VARIANTS
def test_rala_around_the_size_of_a_split(hw, rope, reweight):
    """Splits of 128 tokens are added up."""
    check_rala(hw, heads=1, dim=8, rope=rope, reweight=reweight)


@pytest.mark.parametrize("dtype", list(BOUNDS), ids=str)
@pytest.mark.parametrize("dim", [32] if INTERPRETED else [32, 64, 96])
def test_rala_in_half_precision(dim, dtype):
    check_rala((9, 13), heads=2, dim=dim, dtype=dtype)


def test_weights_of_tokens_that_differ_by_hundreds():
    """Exponentials of logits overflow unless their maximum is subtracted."""
    check_rala((19, 29), heads=1, dim=8, scale=12.0)


def test_denominators_as_small_as_their_eps():
    """Elsewhere the gradients of the tokens' weights have a weighted mean near 0."""
    check_rala((5, 7), heads=1, dim=8, shift=-16.0)


@pytest.mark.parametrize("which", [0, 1, 2])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_values_that_are_not_finite(which, value):
    """They reach whatever they reach in plain PyTorch: a loss must show them."""
    heads = [x.detach() for x in heads_of(draw((1, 35, 4 * 8), torch.float32), 1)]
    heads = [x.clone().requires_grad_() for x in heads]
    with torch.no_grad():
        heads[which][0, 0, 7, 3] = value
    broken = []
    for run in (rala.rala, naive.rala):
        y = run(*heads, (5, 7), True, True)
        grads = torch.autograd.grad(y.sum(), heads)
        broken.append([~t.isfinite() for t in (y, *grads)])
    for got, expected in zip(*broken, strict=True):
        assert got[expected].all()


def test_gradients_that_are_not_contiguous():
    product = draw((1, 35, 4 * 16), torch.float32)
    y = rala.rala(*heads_of(product, 2), (5, 7), True, True)
    (got,) = torch.autograd.grad(y.sum(), product)  # an expanded tensor of ones
    double = product.detach().double().cpu().requires_grad_()
    expected = twin_of_rala(*heads_of(double, 2), (5, 7), True, True)
    (wanted,) = torch.autograd.grad(expected.sum(), double)
    assert error(got.cpu(), wanted) < 1e-5


def test_second_derivatives_of_rala():
    def penalty(y: Tensor, x: Tensor) -> Tensor:
        (grad,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
        return torch.autograd.grad(grad.square().sum(), x)[0]

    product = draw((1, 12, 4 * 8), torch.float32)
    double = product.detach().double().cpu().requires_grad_()
    got = penalty(rala.rala(*heads_of(product, 1), (3, 4), True, True), product)
    twin = twin_of_rala(*heads_of(double, 1), (3, 4), True, True)
    assert error(got.cpu(), penalty(twin, double)) < 1e-4


@pytest.mark.parametrize("frozen", [0, 1, 2])
def test_second_derivatives_with_frozen_tensors(frozen):
    """Under autocast, too, whose half precision must not reach them."""
    heads = [x.detach() for x in heads_of(draw((1, 12, 4 * 8), torch.float32), 1)]
    wanted = [x.requires_grad_() for i, x in enumerate(heads) if i != frozen]
    found = []
    for run in (rala.rala, naive.rala):
        y = run(*heads, (3, 4), True, True)
        with torch.autocast(DEVICE, torch.bfloat16, enabled=run is rala.rala):
            grads = torch.autograd.grad(y.square().sum(), wanted, create_graph=True)
        penalty = sum(grad.square().sum() for grad in grads)
        found.append(torch.autograd.grad(penalty, wanted))
    for got, expected in zip(*found, strict=True):
        assert error(got, expected) < 1e-4


def test_no_images():
    q, k, v = heads_of(draw((0, 35, 64), torch.float32), 2)
    y = rala.rala(q, k, v, (5, 7), True, True)
    assert y.shape == v.shape
    y.sum().backward()


@pytest.mark.parametrize("hw", [(1, 1), (5, 7), (3, 33)])
@pytest.mark.parametrize("dtype", list(BOUNDS), ids=str)
def test_rotation(hw, dtype):
    inputs = [draw((2, 3, hw[0] * hw[1], 12), dtype) for _ in range(2)]
    compare(
        lambda q, k: torch.cat(rotary.rotate(q, k, hw)),
        lambda q, k: torch.cat((turn(q, hw), turn(k, hw))),
        inputs,
        BOUNDS[dtype],
    )


def convolve(x, weight, bias, residual) -> Tensor:
    """Convolve as the definition of PyTorch says."""
    maps = x.permute(0, 3, 1, 2)
    margin = weight.shape[-1] // 2
    y = F.conv2d(maps, weight, bias, padding=margin, groups=len(weight))
    return (y + maps * residual).permute(0, 2, 3, 1)


@pytest.mark.parametrize("hw", [(1, 1), (7, 9), (8, 8), (9, 5)])
@pytest.mark.parametrize(("size", "residual"), [(3, True), (5, False)])
@pytest.mark.parametrize("dtype", list(BOUNDS), ids=str)
def test_depthwise_convolution(hw, size, residual, dtype):
    """Weights stay in float32, as they do under autocast."""
    channels = 36
    inputs = [
        draw((2, *hw, 3 * channels), dtype),
        draw((channels, 1, size, size), torch.float32),
        draw((channels,), torch.float32),
    ]

    def middle(x: Tensor) -> Tensor:
        return x.chunk(3, dim=-1)[1]

    compare(
        lambda x, w, b: depthwise.depthwise_conv(middle(x), w, b, residual),
        lambda x, w, b: convolve(middle(x), w, b, residual),
        inputs,
        BOUNDS[dtype],
    )


def test_depthwise_convolution_without_bias_and_second_derivatives():
    def penalty(y: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
        grads = torch.autograd.grad(y.pow(3).sum(), inputs, create_graph=True)
        return torch.autograd.grad(sum(g.square().sum() for g in grads), inputs)

    x, weight = draw((1, 5, 4, 6), torch.float32), draw((6, 1, 3, 3), torch.float32)
    doubles = [t.detach().double().cpu().requires_grad_() for t in (x, weight)]
    got = penalty(depthwise.depthwise_conv(x, weight, None, True), x, weight)
    expected = penalty(convolve(*doubles, None, True), *doubles)
    for one, wanted in zip(got, expected, strict=True):
        assert error(one.cpu(), wanted) < 1e-4


@pytest.mark.parametrize("attn_types", ["rala", "softmax"])
def test_network(attn_types):
    """Features and gradients of the whole network equal those of plain PyTorch."""
    model = randomize(build(attn_types=attn_types), mild=True).to(DEVICE)
    x = images(1, 3, 38, 26).to(DEVICE)
    results = []
    for context in (plain_forms, torch.enable_grad):
        with context():
            model.zero_grad()
            outs = model.eval()(x)
            sum(out.square().sum() for out in outs).backward()
        results.append([*outs, *(p.grad.clone() for p in model.parameters())])
    for expected, got in zip(*results, strict=True):
        assert error(got, expected) < 2e-4


def test_network_without_gradients():
    model = randomize(build(attn_types="rala"), mild=True).to(DEVICE).eval()
    x = images(1, 3, 38, 26).to(DEVICE)
    with torch.no_grad():
        got = model(x)
        with plain_forms():
            expected = model(x)
    for one, wanted in zip(got, expected, strict=True):
        assert error(one, wanted) < 1e-4
