"""The operators of border_align.py through mmcv.ops."""

import mmcv.ops
import pytest
import torch
from bilinear_twin import interpolate


def make_inputs(dtype=torch.float64, channels: int = 3):
    generator = torch.Generator().manual_seed(0)
    maps = torch.randn(2, 4 * channels, 7, 9, generator=generator, dtype=torch.float64)
    corner = torch.rand(2, 6, 2, generator=generator, dtype=torch.float64) * 7 - 2
    size = torch.rand(2, 6, 2, generator=generator, dtype=torch.float64) * 6 - 0.5
    size[0, 0] = 0
    return maps.to(dtype), torch.cat((corner, corner + size), dim=-1).to(dtype)


def twin(maps, boxes, steps):
    output = []
    channels = maps.shape[1] // 4
    for planes, image_boxes in zip(maps, boxes.tolist(), strict=True):
        for channel in range(channels):
            for x1, y1, x2, y2 in image_boxes:
                high, wide = (y2 - y1) / steps, (x2 - x1) / steps
                walks = (
                    (x1, y1, wide, 0),
                    (x1, y1, 0, high),
                    (x2, y2, -wide, 0),
                    (x2, y2, 0, -high),
                )
                for border, (x, y, along, down) in enumerate(walks):
                    plane = planes[border * channels + channel]
                    values = [
                        interpolate(plane, y + i * down, x + i * along)
                        for i in range(steps + 1)
                    ]
                    output.append(torch.stack(values).max())
    return torch.stack(output).view(len(maps), channels, boxes.shape[1], 4)


def run(maps, boxes, steps=5):
    """Return the output and the gradient of a weighted sum of it."""
    maps = maps.detach().requires_grad_()
    output = mmcv.ops.border_align(maps, boxes, steps)
    weight = torch.linspace(-1, 2, output.numel()).view(output.shape)
    output.backward(weight.to(output))
    return output.detach(), maps.grad


@pytest.mark.parametrize("steps", [1, 5, 10])
def test_values_and_gradients(ours, steps):
    maps, boxes = make_inputs()
    output, grad = run(maps, boxes, steps)
    maps.requires_grad_()
    expected = twin(maps, boxes, steps)
    torch.testing.assert_close(output, expected)
    weight = torch.linspace(-1, 2, expected.numel()).view(expected.shape)
    expected.backward(weight.double())
    torch.testing.assert_close(grad, maps.grad, rtol=1e-6, atol=1e-7)


def test_gradcheck(ours):
    maps, boxes = make_inputs(channels=1)
    maps.requires_grad_()
    boxes = boxes[:, 1:]
    assert torch.autograd.gradcheck(lambda m: mmcv.ops.border_align(m, boxes, 3), maps)


def test_the_first_of_equal_samples_counts(ours):
    maps, boxes = make_inputs(torch.float32)
    index = torch.ones(2, 3, 6, 4, dtype=torch.int32)
    output = torch.zeros(2, 3, 6, 4)
    ours.border_align_forward(torch.ones_like(maps), boxes * 0 + 3, output, index, 4)
    assert not index.any()
    assert (output == 1).all()


def test_no_boxes_and_no_images(ours):
    maps, boxes = make_inputs(torch.float32)
    output, grad = run(maps, boxes[:, :0])
    assert output.shape == (2, 3, 0, 4)
    assert not grad.any()
    assert run(maps[:0], boxes[:0])[1].shape == (0, 12, 7, 9)


def test_channels_last(ours):
    maps, boxes = make_inputs()
    actual = run(maps.to(memory_format=torch.channels_last), boxes)
    torch.testing.assert_close(actual, run(maps, boxes))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("box_dtype", [None, torch.float32])
def test_half_precision_and_autocast(ours, dtype, box_dtype):
    maps, boxes = make_inputs(dtype)
    expected = run(maps.float(), boxes.float())
    for enabled in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            output, grad = run(maps, boxes.to(box_dtype or dtype))
        assert torch.equal(output, expected[0].to(dtype))
        assert grad.dtype == dtype
        torch.testing.assert_close(grad.float(), expected[1], rtol=0.02, atol=0.05)


def test_module(ours):
    maps, boxes = make_inputs()
    torch.testing.assert_close(
        mmcv.ops.BorderAlign(5)(maps, boxes), run(maps, boxes)[0]
    )


@pytest.mark.gpu
def test_gpu_equals_cpu(ours):
    maps, boxes = make_inputs(torch.float32)
    actual = run(maps.cuda(), boxes.cuda())
    torch.testing.assert_close([v.cpu() for v in actual], [*run(maps, boxes)])


@pytest.mark.gpu
def test_gpu_equals_the_compiled_operator(compiled, request):
    maps, boxes = (v.cuda() for v in make_inputs(torch.float32))
    expected = run(maps, boxes)
    request.getfixturevalue("ours")
    torch.testing.assert_close(run(maps, boxes), expected, rtol=1e-5, atol=1e-5)
