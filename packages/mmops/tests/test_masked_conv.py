"""Masked convolution beside the plain one."""

import mmcv.ops
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor


def example(
    kernel: tuple[int, int], dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(1, 3, 6, 7, generator=generator, dtype=torch.float64)
    mask = torch.rand(1, 6, 7, generator=generator) > 0.5
    weight = torch.randn(4, 3, *kernel, generator=generator, dtype=torch.float64)
    bias = torch.randn(4, generator=generator, dtype=torch.float64)
    return image.to(dtype), mask, weight.to(dtype), bias.to(dtype)


@pytest.mark.parametrize(
    "kernel, padding", [((3, 3), 1), ((1, 1), 0), ((3, 5), (1, 2)), ((5, 1), (2, 0))]
)
def test_definition(ours, kernel, padding):
    image, mask, weight, bias = example(kernel)
    result = mmcv.ops.masked_conv2d(image, mask, weight, bias, padding)
    expected = F.conv2d(image, weight, bias, padding=padding) * mask
    torch.testing.assert_close(result, expected)


@pytest.mark.parametrize("pad", [(0, 0), (1, 1), (2, 3)])
def test_columns(ours, pad):
    """Whatever the padding, a column starts that far before its pixel."""
    image = example((3, 2))[0]
    h, w = torch.tensor([0, 5, 2]), torch.tensor([0, 6, 3])
    columns = image.new_zeros(18, 3)
    ours.masked_im2col_forward(
        image, h, w, columns, kernel_h=3, kernel_w=2, pad_h=pad[0], pad_w=pad[1]
    )
    for m in range(3):
        for c in range(3):
            for i in range(3):
                for j in range(2):
                    y, x = h[m] - pad[0] + i, w[m] - pad[1] + j
                    inside = 0 <= y < 6 and 0 <= x < 7
                    expected = image[0, c, y, x] if inside else 0
                    assert columns[(c * 3 + i) * 2 + j, m] == expected


def test_other_pixels_keep_their_values(ours):
    image = torch.ones(1, 2, 3, 4)
    column = torch.tensor([[5.0], [6.0]])
    ours.masked_col2im_forward(
        column,
        torch.tensor([1]),
        torch.tensor([2]),
        image,
        height=3,
        width=4,
        channels=2,
    )
    assert image[0, :, 1, 2].tolist() == [5, 6] and image.sum() == 22 + 11


def test_empty_mask(ours):
    image, mask, weight, bias = example((3, 3))
    result = mmcv.ops.masked_conv2d(image, mask & False, weight, bias, 1)
    assert result.shape == (1, 4, 6, 7) and not result.any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(ours, dtype):
    image, mask, weight, bias = example((3, 3), dtype)
    result = mmcv.ops.masked_conv2d(image, mask, weight, bias, 1)
    expected = F.conv2d(image.double(), weight.double(), bias.double(), padding=1)
    tolerance = 8 * torch.finfo(dtype).eps
    assert result.dtype == dtype
    torch.testing.assert_close(
        result.double(), expected * mask, rtol=tolerance, atol=tolerance
    )


def test_layout_and_autocast(ours):
    image, mask, weight, bias = example((3, 3), torch.float32)
    expected = F.conv2d(image, weight, bias, padding=1) * mask
    last = image.contiguous(memory_format=torch.channels_last)
    result = mmcv.ops.masked_conv2d(last, mask, weight, bias, 1)
    torch.testing.assert_close(result, expected)
    with torch.autocast("cpu", torch.bfloat16):
        result = mmcv.ops.masked_conv2d(last, mask, weight, bias, 1)
    assert result.dtype == torch.float32
    torch.testing.assert_close(result, expected, rtol=0.02, atol=0.05)


def test_module(ours):
    torch.manual_seed(0)
    module = mmcv.ops.MaskedConv2d(3, 4, 3, padding=1)
    image, mask, _, _ = example((3, 3), torch.float32)
    torch.testing.assert_close(module(image, mask), module(image) * mask)


@pytest.mark.gpu
def test_equals_compiled_on_gpus(ours, compiled, monkeypatch):
    args = [tensor.cuda() for tensor in example((3, 3), torch.float32)]
    result = mmcv.ops.masked_conv2d(*args, 1)
    monkeypatch.setattr(mmcv.ops.masked_conv, "ext_module", compiled)
    torch.testing.assert_close(result, mmcv.ops.masked_conv2d(*args, 1))
