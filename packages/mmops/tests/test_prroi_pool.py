"""The operators of prroi_pool.py through mmcv.ops."""

import math

import mmcv.ops
import pytest
import torch

ROIS = [
    [0, 3.0, 5.0, 41.0, 33.0],
    [1, -9.0, -7.0, 20.2, 15.0],  # beyond the upper left corner
    [1, 30.3, 21.7, 80.0, 60.0],  # beyond the lower right corner
    [0, 200.0, 200.0, 220.0, 230.0],  # outside
    [0, 11.0, 12.1, 11.9, 12.8],  # within a pixel
    [1, 8.0, 8.0, 8.0, 8.0],  # without area
    [1, 8.0, 8.0, 5.0, 19.0],  # inverted
    [0, 0.1, 0.1, 4.1, 36.1],  # narrow
]
SIZE, SCALE = (3, 2), 0.25


def make_inputs(dtype=torch.float64, channels: int = 3):
    generator = torch.Generator().manual_seed(0)
    maps = torch.randn(2, channels, 9, 11, generator=generator, dtype=torch.float64)
    return maps.to(dtype), torch.tensor(ROIS, dtype=dtype)


def integrate(first, last, size):
    """Return the integrals of every pixel's hat function, by Simpson's rule.

    Between whole numbers the function is linear, where the rule is exact.
    """
    integrals = []
    for pixel in range(size):
        total = first * 0
        for left in (pixel - 1, pixel):
            a = torch.clamp(first, left, left + 1)
            b = torch.clamp(last, left, left + 1)
            values = [1 - abs(v - pixel) for v in (a, (a + b) / 2, b)]
            total = total + (b - a) * (values[0] + 4 * values[1] + values[2]) / 6
        integrals.append(total)
    return torch.stack(integrals)


def twin(maps, rois):
    output = []
    for roi in rois:
        x1, y1, x2, y2 = roi[1:] * SCALE
        high, wide = (y2 - y1) / SIZE[0], (x2 - x1) / SIZE[1]
        for plane in maps[int(roi[0])]:
            for row in range(SIZE[0]):
                for column in range(SIZE[1]):
                    if high <= 0 or wide <= 0:
                        output.append(plane.sum() * 0)
                        continue
                    top, left = y1 + row * high, x1 + column * wide
                    rows = integrate(top, top + high, plane.shape[0])
                    columns = integrate(left, left + wide, plane.shape[1])
                    output.append(rows @ plane @ columns / (high * wide))
    return torch.stack(output).view(len(rois), -1, *SIZE)


def run(maps, rois):
    """Return the output and the gradients of a weighted sum of it."""
    maps, rois = (v.detach().requires_grad_() for v in (maps, rois))
    output = mmcv.ops.prroi_pool(maps, rois, SIZE, SCALE)
    weight = torch.linspace(-1, 2, output.numel()).view(output.shape)
    output.backward(weight.to(output))
    return output.detach(), maps.grad, rois.grad


def test_values_and_gradients(ours):
    maps, rois = (v.requires_grad_() for v in make_inputs())
    expected = twin(maps, rois)
    weight = torch.linspace(-1, 2, expected.numel()).view(expected.shape)
    expected.backward(weight.double())
    # mmcv's function takes float32 only.
    actual = run(maps.float(), rois.float())
    wanted = [v.float() for v in (expected.detach(), maps.grad, rois.grad)]
    torch.testing.assert_close([*actual], wanted, rtol=1e-4, atol=1e-5)
    assert wanted[2][:3, 1:].abs().min() > 1e-4
    assert not actual[2][:, 0].any()


class Pool(torch.autograd.Function):
    """mmcv's PrRoIPoolFunction without its check of the dtype."""

    @staticmethod
    def forward(ctx, functions, maps, rois):
        output = maps.new_zeros(len(rois), maps.shape[1], *SIZE)
        functions.prroi_pool_forward(maps, rois, output, *SIZE, SCALE)
        ctx.functions = functions
        ctx.save_for_backward(maps, rois, output)
        return output

    @staticmethod
    def backward(ctx, grad):
        maps, rois, output = ctx.saved_tensors
        grads = torch.zeros_like(maps), torch.zeros_like(rois)
        ctx.functions.prroi_pool_backward(grad, rois, grads[0], *SIZE, SCALE)
        ctx.functions.prroi_pool_coor_backward(
            output, grad, maps, rois, grads[1], *SIZE, SCALE
        )
        return None, *grads


def test_gradcheck(ours):
    maps, rois = make_inputs(channels=1)
    boxes = rois[[0, 1, 2, 4, 7], 1:].requires_grad_()
    image = rois[[0, 1, 2, 4, 7], :1]

    def pool(maps, boxes):
        return Pool.apply(ours, maps, torch.cat((image, boxes), dim=1))

    assert torch.autograd.gradcheck(pool, (maps.requires_grad_(), boxes))


def test_float64_is_exact(ours):
    maps, rois = make_inputs()
    actual = Pool.apply(ours, maps, rois)
    torch.testing.assert_close(actual, twin(maps, rois), rtol=1e-12, atol=1e-12)


def test_small_bins_of_a_large_map_with_a_large_mean(ours):
    maps = torch.randn(1, 1, 200, 320, generator=torch.Generator().manual_seed(0)) + 100
    rois = torch.tensor([[0, 1240.0, 760.0, 1243.0, 764.0]])
    actual = mmcv.ops.prroi_pool(maps, rois, SIZE, SCALE)
    expected = twin(maps.double(), rois.double()).float()
    torch.testing.assert_close(actual, expected, rtol=1e-6, atol=0)


def test_no_rois_and_no_images(ours):
    maps, rois = make_inputs(torch.float32)
    output, grad_maps, grad_rois = run(maps, rois[:0])
    assert output.shape == (0, 3, *SIZE)
    assert not grad_maps.any()
    assert grad_rois.shape == (0, 5)
    assert run(maps[:0], rois[:0])[1].shape == (0, 3, 9, 11)


def test_channels_last(ours):
    maps, rois = make_inputs(torch.float32)
    last = maps.to(memory_format=torch.channels_last)
    # mmcv's function makes a contiguous copy, which it then gives no gradient.
    torch.testing.assert_close(run(last, rois)[0], run(maps, rois)[0])


def test_autocast(ours):
    maps, rois = make_inputs(torch.float32)
    expected = run(maps, rois)
    with torch.autocast("cpu", torch.bfloat16):
        actual = run(maps, rois)
    torch.testing.assert_close(actual, expected)


def test_half_precision(ours):
    maps, rois = make_inputs(torch.bfloat16)
    output = torch.zeros(len(rois), 3, *SIZE, dtype=torch.bfloat16)
    ours.prroi_pool_forward(maps, rois, output, *SIZE, SCALE)
    expected = twin(maps.double(), rois.double()).bfloat16()
    torch.testing.assert_close(output, expected, rtol=0.01, atol=1e-4)


def test_module(ours):
    maps, rois = make_inputs(torch.float32)
    layer = mmcv.ops.PrRoIPool(SIZE, SCALE)
    torch.testing.assert_close(layer(maps, rois), run(maps, rois)[0])


def test_no_gradient_where_a_bin_has_no_area(ours):
    maps, rois = make_inputs(torch.float32)
    _, grad_maps, grad_rois = run(maps, rois[5:7])
    assert not grad_maps.any()
    assert not grad_rois.any()
    assert math.isfinite(grad_rois.sum())


@pytest.mark.gpu
def test_gpu_equals_cpu(ours):
    maps, rois = make_inputs(torch.float32)
    actual = run(maps.cuda(), rois.cuda())
    torch.testing.assert_close([v.cpu() for v in actual], [*run(maps, rois)])


@pytest.mark.gpu
def test_gpu_equals_the_compiled_operator(compiled, request):
    maps, rois = (v.cuda() for v in make_inputs(torch.float32))
    expected = run(maps, rois)
    request.getfixturevalue("ours")
    torch.testing.assert_close(run(maps, rois), expected, rtol=1e-4, atol=1e-4)
