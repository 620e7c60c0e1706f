"""CARAFE beside its definition."""

import mmcv.ops
import pytest
import torch
from torch import Tensor

# kernel, groups, scale
CASES = [(1, 1, 1), (3, 1, 2), (5, 2, 2), (3, 4, 3)]


def example(case, dtype=torch.float64, images: int = 2) -> tuple[Tensor, Tensor]:
    kernel, groups, scale = case
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(images, 4, 3, 5, generator=generator, dtype=torch.float64)
    masks = torch.rand(
        (images, groups * kernel**2, 3 * scale, 5 * scale),
        generator=generator,
        dtype=torch.float64,
    )
    return features.to(dtype), masks.to(dtype)


def naive(
    features: Tensor, masks: Tensor, kernel: int, groups: int, scale: int
) -> Tensor:
    """The definition, an output pixel and a kernel point at a time."""
    n, channels, height, width = features.shape
    result = features.new_zeros(n, channels, height * scale, width * scale)
    for c in range(channels):
        group = c // (channels // groups)
        for y in range(height * scale):
            for x in range(width * scale):
                for i in range(kernel):
                    for j in range(kernel):
                        row = y // scale + i - kernel // 2
                        column = x // scale + j - kernel // 2
                        if 0 <= row < height and 0 <= column < width:
                            point = (group * kernel + i) * kernel + j
                            result[:, c, y, x] += (
                                features[:, c, row, column] * masks[:, point, y, x]
                            )
    return result


def with_grads(function, tensors, *args) -> list[Tensor]:
    tensors = [tensor.detach().clone().requires_grad_() for tensor in tensors]
    result = function(*tensors, *args)
    factors = torch.arange(result.numel(), device=result.device).sin().view_as(result)
    grads = torch.autograd.grad((result.double() * factors).sum(), tensors)
    return [result.detach(), *grads]


@pytest.mark.parametrize("case", CASES)
def test_definition(ours, case):
    tensors = example(case)
    torch.testing.assert_close(
        with_grads(mmcv.ops.carafe, tensors, *case), with_grads(naive, tensors, *case)
    )


@pytest.mark.parametrize("case", CASES)
def test_naive_operator(ours, case):
    """mmcv's CARAFENaive asserts CUDA in its backward pass."""
    tensors = example(case)
    expected, *grads = with_grads(mmcv.ops.carafe, tensors, *case)
    torch.testing.assert_close(mmcv.ops.carafe_naive(*tensors, *case), expected)
    factors = torch.arange(expected.numel()).sin().view_as(expected).double()
    buffers = [torch.zeros_like(tensor) for tensor in tensors]
    ours.carafe_naive_backward(
        factors,
        *tensors,
        *buffers,
        kernel_size=case[0],
        group_size=case[1],
        scale_factor=case[2],
    )
    torch.testing.assert_close(buffers, grads)


def test_gradcheck(ours):
    tensors = [tensor.requires_grad_() for tensor in example(CASES[2])]
    torch.autograd.gradcheck(
        lambda f, m: mmcv.ops.carafe(f, m, *CASES[2]), tensors, fast_mode=True
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(ours, dtype):
    tensors = example(CASES[2], dtype)
    result = with_grads(mmcv.ops.carafe, tensors, *CASES[2])
    double = [tensor.double() for tensor in tensors]
    expected = with_grads(mmcv.ops.carafe, double, *CASES[2])
    assert all(tensor.dtype == dtype for tensor in result)
    eps = torch.finfo(dtype).eps
    for ours_, theirs in zip(result, expected, strict=True):
        torch.testing.assert_close(ours_.double(), theirs, rtol=2 * eps, atol=2 * eps)


def test_layout(ours):
    tensors = example(CASES[2])
    expected = with_grads(mmcv.ops.carafe, tensors, *CASES[2])
    last = [t.contiguous(memory_format=torch.channels_last) for t in tensors]
    torch.testing.assert_close(with_grads(mmcv.ops.carafe, last, *CASES[2]), expected)


def test_no_images(ours):
    result, *grads = with_grads(mmcv.ops.carafe, example(CASES[1], images=0), *CASES[1])
    assert result.shape == (0, 4, 6, 10) and grads[0].shape == (0, 4, 3, 5)


@pytest.mark.parametrize("autocast", [False, True])
def test_module_trains(ours, autocast):
    torch.manual_seed(0)
    module = mmcv.ops.CARAFEPack(8, 2, compressed_channels=4)
    features = torch.randn(2, 8, 4, 5, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        output = module(features)
    output.square().mean().backward()
    assert output.shape == (2, 8, 8, 10) and output.dtype == torch.float32
    assert features.grad.isfinite().all()
    assert all(p.grad.isfinite().all() for p in module.parameters())


@pytest.mark.gpu
@pytest.mark.parametrize("case", CASES)
def test_equals_compiled_on_gpus(ours, compiled, monkeypatch, case):
    tensors = [tensor.cuda() for tensor in example(case, torch.float32)]
    for function in (mmcv.ops.carafe, mmcv.ops.carafe_naive):
        result = with_grads(function, tensors, *case)
        with monkeypatch.context() as patch:
            patch.setattr("mmcv.ops.carafe.ext_module", compiled)
            torch.testing.assert_close(result, with_grads(function, tensors, *case))
