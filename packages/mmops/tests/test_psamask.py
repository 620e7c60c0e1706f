"""PSA masks beside their definition."""

import mmcv.ops
import pytest
import torch
from torch import Tensor

SIZES = [
    ((3, 5), (3, 3)),
    ((4, 3), (7, 5)),
    ((3, 4), (9, 11)),
    ((4, 4), (2, 4)),
    ((4, 1), (3, 3)),
    ((1, 4), (1, 3)),
]
TYPES = ["collect", "distribute"]


def example(feature, mask, dtype=torch.float64, images: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    shape = (images, mask[0] * mask[1], *feature)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


def naive(masks: Tensor, psa_type: str, mask: tuple[int, int]) -> Tensor:
    """The definition, a pair of pixels at a time."""
    n, _, height, width = masks.shape
    result = masks.new_zeros(n, height, width, height, width)
    for h in range(height):
        for w in range(width):
            for i in range(mask[0]):
                for j in range(mask[1]):
                    y, x = h + i - (mask[0] - 1) // 2, w + j - (mask[1] - 1) // 2
                    if 0 <= y < height and 0 <= x < width:
                        value = masks[:, i * mask[1] + j, h, w]
                        if psa_type == "collect":
                            result[:, y, x, h, w] = value
                        else:
                            result[:, h, w, y, x] = value
    return result.flatten(1, 2)


def with_grad(function, masks: Tensor) -> tuple[Tensor, Tensor]:
    masks = masks.detach().requires_grad_()
    result = function(masks)
    factors = torch.arange(result.numel(), device=result.device).sin().view_as(result)
    grad = torch.autograd.grad((result.double() * factors).sum(), masks)[0]
    return result.detach(), grad


@pytest.mark.parametrize("psa_type", TYPES)
@pytest.mark.parametrize("feature, mask", SIZES)
def test_definition(ours, feature, mask, psa_type):
    masks = example(feature, mask)
    result = with_grad(mmcv.ops.PSAMask(psa_type, mask), masks)
    expected = with_grad(lambda masks: naive(masks, psa_type, mask), masks)
    torch.testing.assert_close(result, expected, rtol=0, atol=0)


@pytest.mark.parametrize("psa_type", TYPES)
@pytest.mark.parametrize("feature, mask", SIZES)
def test_equals_compiled(ours, compiled, monkeypatch, feature, mask, psa_type):
    masks, module = (
        example(feature, mask, torch.float32),
        mmcv.ops.PSAMask(psa_type, mask),
    )
    result = with_grad(module, masks)
    monkeypatch.setattr("mmcv.ops.psa_mask.ext_module", compiled)
    torch.testing.assert_close(result, with_grad(module, masks), rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("psa_type", TYPES)
def test_half_precision_layout_and_autocast(ours, psa_type, dtype):
    module, masks = mmcv.ops.PSAMask(psa_type, (7, 5)), example((4, 3), (7, 5), dtype)
    expected = with_grad(module, masks.double())
    last = masks.contiguous(memory_format=torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16):
        value, grad = with_grad(module, last)
    assert value.dtype == grad.dtype == dtype
    torch.testing.assert_close(value.double(), expected[0], rtol=0, atol=0)
    torch.testing.assert_close(grad, expected[1].to(dtype))


@pytest.mark.parametrize("psa_type", TYPES)
def test_no_images(ours, psa_type):
    module = mmcv.ops.PSAMask(psa_type, (3, 3))
    value, grad = with_grad(module, example((4, 3), (3, 3), images=0))
    assert value.shape == (0, 12, 4, 3) and grad.shape == (0, 9, 4, 3)


@pytest.mark.gpu
@pytest.mark.parametrize("psa_type", TYPES)
@pytest.mark.parametrize("feature, mask", SIZES)
def test_gpu_equals_cpu(ours, no_sync, feature, mask, psa_type):
    masks, module = (
        example(feature, mask, torch.float32),
        mmcv.ops.PSAMask(psa_type, mask),
    )
    expected = with_grad(module, masks)
    result = with_grad(module, masks.cuda(non_blocking=True))
    torch.cuda.set_sync_debug_mode("default")
    torch.testing.assert_close([t.cpu() for t in result], list(expected))
