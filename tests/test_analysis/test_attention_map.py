"""Rows of attention against explicit matrices, and the tokens of pixels."""

import math

import pytest
import torch
from PIL import Image

from helpers.core_cases import build_shaken, draw, draw_input
from helpers.largest_tensor import largest
from ravlt.analysis.attention.map import (
    attention_of_pixel,
    attention_row,
    combine_heads,
    find_layer,
    half_radius,
    put_core,
    token_at,
)
from ravlt.analysis.attention.rank_study import load_subject, to_pixels
from ravlt.errors import RAVLTError
from ravlt.models.attention import CORES

CASES = [(name, {}) for name in CORES] + [
    ("cosformer", dict(layout="raster")),
    ("diag", dict(activation="softmax")),
    ("fixation", dict(shift=True)),
    ("gla", dict(scan="cross4")),
    ("hedgehog", dict(normalisation="softmax")),
    ("rala", dict(rope=False)),
]


@pytest.mark.parametrize("hw", [(7, 9), (9, 17), (1, 5), (1, 1)], ids=str)
@pytest.mark.parametrize(("name", "options"), CASES, ids=str)
def test_row_equals_that_of_the_explicit_matrix(name, options, hw):
    core = build_shaken(name, **options).eval()
    inputs = (*draw(hw), hw, *draw_input(core, hw))
    dense = core.dense(*inputs)
    tokens = hw[0] * hw[1]
    for token in {0, tokens // 2, tokens - 1}:
        row = attention_row(core, inputs, token)
        assert not row.requires_grad
        torch.testing.assert_close(row, dense[:, :, token], rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", CORES)
def test_rows_with_values_of_zero(name):
    """The outputs are 0, and every direction is orthogonal to 0."""
    core = build_shaken(name).eval()
    q, k, v = draw((4, 5))
    inputs = (q, k, torch.zeros_like(v), (4, 5), *draw_input(core, (4, 5)))
    dense = core.dense(*inputs)
    row = attention_row(core, inputs, 7)
    torch.testing.assert_close(row, dense[:, :, 7], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", CORES)
def test_rows_are_float32_or_wider_under_autocast(name, dtype):
    core = build_shaken(name).eval().float()
    tensors = (*draw((7, 9)), *draw_input(core, (7, 9)))
    q, k, v, *x = (t.detach().to(dtype) for t in tensors)
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
        row = attention_row(core, (q, k, v, (7, 9), *x), 20)
    q, k, v, *x = (t.double() for t in (q, k, v, *x))
    dense = core.double().dense(q, k, v, (7, 9), *x)
    assert row.dtype == torch.float32
    torch.testing.assert_close(row.double(), dense[:, :, 20], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", CORES)
def test_a_row_allocates_no_n_by_n_matrix(name):
    hw = (40, 52)
    core = build_shaken(name).eval().float()
    q, k, v = (t.detach().float()[:1] for t in draw(hw))
    x = [t.detach().float()[:1] for t in draw_input(core, hw)]
    widest = largest(attention_row, core, (q, k, v, hw, *x), 1000, backward=False)
    assert widest.numel >= q.numel()
    assert widest.numel < (40 * 52) ** 2 / 7, widest.shape


def test_clamped_vicinity_is_refused():
    core = build_shaken("vicinity", legacy_clamp=True)
    with pytest.raises(RAVLTError, match="legacy_clamp=True is not a linear map"):
        attention_row(core, (*draw((4, 5)), (4, 5)), 0)


# ------------------------------------------------------------------ pixels to tokens


@pytest.mark.parametrize(
    ("pixel", "image_size", "size", "stride", "token"),
    [
        ((0, 0), (160, 128), (128, 160), 4, (0, 0)),
        ((3, 4), (160, 128), (128, 160), 4, (1, 0)),
        ((159, 127), (160, 128), (128, 160), 4, (31, 39)),
        ((159, 127), (160, 128), (128, 160), 32, (3, 4)),
        ((8, 0), (9, 5), (5, 9), 4, (0, 2)),  # a last token of one pixel
        ((8, 4), (9, 5), (5, 9), 4, (1, 2)),
        ((99, 0), (100, 50), (25, 50), 8, (0, 6)),  # half the size
        ((49, 49), (100, 50), (25, 50), 8, (3, 3)),
        ((4, 2), (10, 5), (40, 80), 4, (5, 9)),  # eight times the size
        ((0, 0), (1, 1), (1, 1), 32, (0, 0)),
    ],
)
def test_token_of_a_pixel(pixel, image_size, size, stride, token):
    assert token_at(pixel, image_size, size, stride) == token


def test_the_square_of_a_token_contains_the_pixel():
    image_size, size, stride = (37, 23), (50, 61), 8
    for x in range(37):
        for y in range(23):
            row, col = token_at((x, y), image_size, size, stride)
            assert row * stride <= (y + 0.5) * 50 / 23 < (row + 1) * stride
            assert col * stride <= (x + 0.5) * 61 / 37 < (col + 1) * stride
            assert row < math.ceil(50 / stride)
            assert col < math.ceil(61 / stride)


@pytest.mark.parametrize("pixel", [(160, 0), (0, 128), (-1, 0), (0, -1)])
def test_pixels_outside_are_refused(pixel):
    with pytest.raises(RAVLTError, match="outside of the image, which is 160 wide"):
        token_at(pixel, (160, 128), (128, 160), 4)


# ---------------------------------------------------------------------------- layers


@pytest.fixture
def image():
    torch.manual_seed(2)
    pixels = torch.randint(256, (40, 60, 3), dtype=torch.uint8)
    return Image.fromarray(pixels.numpy())


ATTENTION = "rala,norm,softmax,gla"


@pytest.mark.parametrize("stage", [1, 2, 3, 4])
def test_attention_is_that_of_the_requested_layer(image, stage):
    subject = load_subject(f"ravlt_test:{ATTENTION}", (35, 60), None)
    block = 2 if stage == 3 else 1
    found = attention_of_pixel(subject, image, (35, 60), (59, 39), stage, block)
    layer = subject.backbone.layers[stage - 1].blocks[block - 1].attn
    calls = []
    layer.core.register_forward_hook(lambda _, inputs, y: calls.append(inputs))
    with torch.no_grad():
        subject.backbone(subject.prepare(to_pixels(image, (35, 60))))
    stride = 2 ** (stage + 1)
    grid = math.ceil(35 / stride), math.ceil(60 / stride)
    expected = layer.core.dense(*calls[0])[0, :, -1].detach()
    assert found.weights.shape == (layer.num_heads, *grid)
    torch.testing.assert_close(
        found.weights.flatten(1), expected, rtol=1e-4, atol=1e-5 * expected.max().item()
    )
    assert found.token == (grid[0] - 1, grid[1] - 1)
    assert found.cell == (stride * 40 / 35, stride)
    assert found.mechanism == ATTENTION.split(",")[stage - 1]
    assert found.signed == (stage in (1, 4))
    assert len(layer.core._forward_hooks) == 1  # only this test's hook is left


def test_layers_of_the_paper_profile_are_supported(image):
    subject = load_subject("ravlt_test", (32, 32), None)
    own = dict(type="fixation", profile="paper")
    subject.backbone = type(subject.backbone)("test", own, tile=0).eval()
    found = attention_of_pixel(subject, image, (32, 32), (5, 5), 2, 1)
    assert found.mechanism == "fixation"
    sums = found.weights.sum((1, 2))
    torch.testing.assert_close(sums, torch.ones(2), rtol=0, atol=1e-5)
    with pytest.raises(RAVLTError, match="stage 2 is a PlainAttention.*'gated'"):
        put_core(subject.backbone, "rala", 2, 1)


def test_a_replaced_mechanism_receives_the_same_tokens(image):
    subject = load_subject("ravlt_test", (32, 48), None)
    for name in CORES:
        put_core(subject.backbone, name, 1, 1)
        found = attention_of_pixel(subject, image, (32, 48), (9, 9), 1, 1)
        assert found.mechanism == name
    put_core(subject.backbone, "linear", 3, 2)
    calls = []
    find_layer(subject.backbone, 3, 2).core.register_forward_hook(
        lambda _, inputs, y: calls.append(inputs)
    )
    found = attention_of_pixel(subject, image, (32, 48), (9, 9), 3, 2)
    expected = CORES["linear"](48, 3).dense(*calls[0])[0, :, 0]
    torch.testing.assert_close(found.weights.flatten(1), expected)


@pytest.mark.parametrize(("stage", "block"), [(0, 1), (5, 1), (1, 0), (3, 3)])
def test_missing_layers_are_refused(image, stage, block):
    subject = load_subject("ravlt_test", (32, 32), None)
    with pytest.raises(RAVLTError, match=f"no block {block} in stage {stage}"):
        attention_of_pixel(subject, image, (32, 32), (0, 0), stage, block)


# ----------------------------------------------------------------------------- maps


def test_heads_are_combined():
    weights = torch.tensor([[[1.0, -4.0, 0.0]], [[3.0, 2.0, -0.5]]])
    (mean,) = combine_heads(weights, "mean").items()
    (largest_weight,) = combine_heads(weights, "max").items()
    assert mean[0] == "mean of 2 heads"
    assert mean[1].tolist() == [[2.0, -1.0, -0.25]]
    assert largest_weight[0] == "max of 2 heads"
    assert largest_weight[1].tolist() == [[3.0, -4.0, -0.5]]
    each = combine_heads(weights, "each")
    assert [*each] == ["head 1", "head 2"]
    assert torch.equal(torch.stack([*each.values()]), weights)
    assert [*combine_heads(weights[:1], "mean")] == ["head 1"]


def test_radius_around_half_of_a_row():
    """Tokens are 8 high and 4 wide; distances start at the token in row 1, column 0."""
    weights = torch.zeros(3, 5)
    weights[1, 0] = 1
    assert half_radius(weights, (1, 0), (8.0, 4.0)) == 0
    weights[1, 0] = 0.4
    weights[1, 3] = -0.6  # counts as much as if it were positive
    assert half_radius(weights, (1, 0), (8.0, 4.0)) == 12
    weights[2, 1] = 3
    distance = math.hypot(8, 4)
    assert half_radius(weights, (1, 0), (8.0, 4.0)) == pytest.approx(distance)
    assert half_radius(torch.zeros(3, 5), (1, 0), (8.0, 4.0)) == 0
