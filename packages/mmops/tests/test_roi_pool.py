"""The operators of roi_pool.py through mmcv.ops."""

import math

import mmcv.ops
import pytest
import torch

ROIS = [
    [0, 3.0, 5.0, 41.0, 33.0],
    [1, -9.0, -7.0, 20.0, 15.0],  # beyond the upper left corner
    [1, 30.3, 21.7, 80.0, 60.0],  # beyond the lower right corner
    [0, 200.0, 200.0, 220.0, 230.0],  # outside
    [0, 11.0, 12.0, 11.9, 12.8],  # within a pixel
    [1, 8.0, 8.0, 8.0, 8.0],  # one pixel of the image
    [1, 9.0, 9.0, 2.0, 20.0],  # inverted
    [0, 0.0, 0.0, 4.0, 36.0],  # narrow
]


def make_inputs(dtype=torch.float64, channels: int = 3):
    generator = torch.Generator().manual_seed(0)
    maps = torch.randn(2, channels, 9, 11, generator=generator, dtype=torch.float64)
    return maps.to(dtype), torch.tensor(ROIS, dtype=dtype)


def span(start: float, size: float, index: int, limit: int) -> slice:
    first = math.floor(index * size + start)
    last = math.ceil((index + 1) * size + start)
    return slice(min(max(first, 0), limit), min(max(last, 0), limit))


def twin(maps, rois, size, scale):
    output = []
    for image, x1, y1, x2, y2 in rois.tolist():
        x1, y1, x2, y2 = (v * scale for v in (x1, y1, x2 + 1, y2 + 1))
        height, width = (y2 - y1) / size[0], (x2 - x1) / size[1]
        for plane in maps[int(image)]:
            for row in range(size[0]):
                for column in range(size[1]):
                    rows = span(y1, height, row, plane.shape[0])
                    region = plane[rows, span(x1, width, column, plane.shape[1])]
                    empty = min(height, width) <= 0 or not region.numel()
                    output.append(plane.sum() * 0 if empty else region.max())
    return torch.stack(output).view(len(rois), -1, *size)


def run(maps, rois, size=(3, 2), scale=0.3):
    """Return the output and the gradient of a weighted sum of it."""
    maps = maps.detach().requires_grad_()
    output = mmcv.ops.roi_pool(maps, rois, size, scale)
    weight = torch.linspace(-1, 2, output.numel()).view(output.shape)
    output.backward(weight.to(output))
    return output.detach(), maps.grad


@pytest.mark.parametrize("size", [(1, 1), (3, 2), (7, 7)])
@pytest.mark.parametrize("scale", [1.0, 0.3, 1 / 8])
def test_values_and_gradients(ours, size, scale):
    maps, rois = make_inputs()
    output, grad = run(maps, rois, size, scale)
    maps.requires_grad_()
    expected = twin(maps, rois, size, scale)
    torch.testing.assert_close(output, expected)
    weight = torch.linspace(-1, 2, expected.numel()).view(expected.shape)
    expected.backward(weight.double())
    torch.testing.assert_close(grad, maps.grad, rtol=1e-6, atol=1e-7)


def test_gradcheck(ours):
    maps, rois = make_inputs(channels=1)
    maps.requires_grad_()
    assert torch.autograd.gradcheck(lambda m: mmcv.ops.roi_pool(m, rois, 2, 0.3), maps)


def test_empty_bins_have_no_place(ours):
    maps, rois = make_inputs(torch.float32)
    output, argmax = torch.ones(2, 3, 2, 2), torch.zeros(2, 3, 2, 2, dtype=torch.int32)
    ours.roi_pool_forward(
        maps,
        rois[[3, 6]],
        output,
        argmax,
        pooled_height=2,
        pooled_width=2,
        spatial_scale=0.3,
    )
    assert not output.any()
    assert (argmax == -1).all()


def test_no_rois_and_no_images(ours):
    maps, rois = make_inputs(torch.float32)
    output, grad = run(maps, rois[:0])
    assert output.shape == (0, 3, 3, 2)
    assert not grad.any()
    assert run(maps[:0], rois[:0])[1].shape == (0, 3, 9, 11)


def test_channels_last(ours):
    maps, rois = make_inputs()
    actual = run(maps.to(memory_format=torch.channels_last), rois)
    torch.testing.assert_close(actual, run(maps, rois))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("roi_dtype", [None, torch.float32])
def test_half_precision_and_autocast(ours, dtype, roi_dtype):
    maps, rois = make_inputs(dtype)
    expected = run(maps.float(), rois.float())
    for enabled in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            output, grad = run(maps, rois.to(roi_dtype or dtype))
        assert torch.equal(output, expected[0].to(dtype))
        torch.testing.assert_close(grad.float(), expected[1], rtol=0.02, atol=0.05)
        assert grad.dtype == dtype


def test_module(ours):
    maps, rois = make_inputs()
    layer = mmcv.ops.RoIPool((3, 2), 0.3)
    torch.testing.assert_close(layer(maps, rois), run(maps, rois)[0])


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_gpu_equals_cpu(ours, dtype):
    maps, rois = make_inputs(dtype)
    expected = run(maps.float(), rois.float())
    output, grad = run(maps.cuda(), rois.cuda())
    assert torch.equal(output.cpu().float(), expected[0])
    torch.testing.assert_close(grad.cpu().float(), expected[1], rtol=0.02, atol=0.05)


@pytest.mark.gpu
def test_gpu_equals_the_compiled_operator(compiled, request):
    maps, rois = (v.cuda() for v in make_inputs(torch.float32))
    rois = rois[[0, 1, 2, 3, 4, 5, 7]]  # mmcv gives inverted RoIs a gradient
    expected = run(maps, rois, (7, 5))
    request.getfixturevalue("ours")
    torch.testing.assert_close(run(maps, rois, (7, 5)), expected, rtol=1e-6, atol=1e-6)
