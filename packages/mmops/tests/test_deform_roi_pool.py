"""The operators of deform_roi_pool.py through mmcv.ops."""

import mmcv.ops
import pytest
import torch
from bilinear_twin import interpolate, is_outside, neighbours, sample_bin

ROIS = [
    [0, 3.0, 5.0, 41.0, 33.0],
    [1, -9.0, -7.0, 20.0, 15.0],  # beyond the upper left corner
    [1, 30.3, 21.7, 80.0, 60.0],  # beyond the lower right corner
    [0, 200.0, 200.0, 220.0, 230.0],  # outside
    [0, 11.0, 12.0, 11.9, 12.8],  # within a pixel
    [1, 8.0, 8.0, 8.0, 8.0],  # without area
    [0, 0.0, 0.0, 4.0, 36.0],  # narrow
    [0, 2.0, 2.0, 34.0, 38.0],  # bins of whole pixels
]
SIZE, SCALE, GAMMA = (3, 2), 0.25, 0.3


def make_inputs(dtype=torch.float64, channels: int = 3):
    generator = torch.Generator().manual_seed(0)
    maps = torch.randn(2, channels, 9, 11, generator=generator, dtype=torch.float64)
    offset = torch.randn(len(ROIS), 2, *SIZE, generator=generator, dtype=torch.float64)
    return maps.to(dtype), torch.tensor(ROIS, dtype=dtype), offset.to(dtype)


def slopes(plane, y: float, x: float):
    """Return mmcv's derivatives along x and y of the interpolation."""
    height, width = plane.shape
    if is_outside(y, x, height, width):
        return 0.0, 0.0
    (top, bottom), (left, right) = neighbours(y, height), neighbours(x, width)
    a, b = plane[top, left], plane[top, right]
    c, d = plane[bottom, left], plane[bottom, right]
    along_x = d * (y - top) + b * (bottom - y) + c * (top - y) + a * (y - bottom)
    along_y = d * (x - left) + c * (right - x) + b * (left - x) + a * (x - right)
    return along_x.item(), along_y.item()


def twin(maps, rois, offset, ratio):
    """Return the output and its derivatives with respect to the bins' offsets."""
    output, along = [], []
    for index, (image, *box) in enumerate(rois.tolist()):
        x1, y1, x2, y2 = (v * SCALE - 0.5 for v in box)
        height, width = y2 - y1, x2 - x1
        for plane in maps[int(image)]:
            for row in range(SIZE[0]):
                for column in range(SIZE[1]):
                    x, y = 0.0, 0.0
                    if offset is not None:
                        x, y = offset[index, :, row, column].tolist()
                    top, left = y1 + GAMMA * height * y, x1 + GAMMA * width * x
                    places = [
                        (y, x)
                        for y in sample_bin(top, height, SIZE[0], row, ratio)
                        for x in sample_bin(left, width, SIZE[1], column, ratio)
                    ]
                    count = max(len(places), 1)
                    values = [interpolate(plane, *place) for place in places]
                    output.append((sum(values) + plane.sum() * 0) / count)
                    steep = [slopes(plane.detach(), *place) for place in places]
                    along.append(
                        [
                            GAMMA * width * sum(s[0] for s in steep) / count,
                            GAMMA * height * sum(s[1] for s in steep) / count,
                        ]
                    )
    shape = (len(rois), -1, *SIZE)
    along = torch.tensor(along, dtype=torch.float64).T.reshape(2, *shape)
    return torch.stack(output).view(shape), along


def run(maps, rois, offset, ratio=0):
    """Return the output and the gradients of a weighted sum of it."""
    maps = maps.detach().requires_grad_()
    if offset is not None:
        offset = offset.detach().requires_grad_()
    args = SIZE, SCALE, ratio, GAMMA
    output = mmcv.ops.deform_roi_pool(maps, rois, offset, *args)
    weight = torch.linspace(-1, 2, output.numel()).view(output.shape)
    output.backward(weight.to(output))
    grads = [maps.grad] if offset is None else [maps.grad, offset.grad]
    return [output.detach(), *grads]


@pytest.mark.parametrize("ratio", [0, 2])
@pytest.mark.parametrize("has_offset", [False, True])
def test_values_and_gradients(ours, ratio, has_offset):
    maps, rois, offset = make_inputs()
    offset = offset if has_offset else None
    actual = run(maps, rois, offset, ratio)
    maps.requires_grad_()
    expected, along = twin(maps, rois, offset, ratio)
    torch.testing.assert_close(actual[0], expected)
    weight = torch.linspace(-1, 2, expected.numel()).view(expected.shape).double()
    expected.backward(weight)
    torch.testing.assert_close(actual[1], maps.grad, rtol=1e-6, atol=1e-7)
    if has_offset:
        wanted = (along * weight).sum(dim=2).transpose(0, 1)
        torch.testing.assert_close(actual[2], wanted, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("ratio", [0, 2])
def test_gradcheck_within_the_map(ours, ratio):
    maps, _, offset = make_inputs(channels=2)
    rois = torch.tensor([[0, 9.0, 9.0, 29.0, 27.0], [1, 10.0, 8.0, 30, 22]]).double()
    offset = (offset[:2] / 10).requires_grad_()

    def pool(maps, offset):
        args = SIZE, SCALE, ratio, GAMMA
        return mmcv.ops.deform_roi_pool(maps, rois, offset, *args)

    assert torch.autograd.gradcheck(pool, (maps.requires_grad_(), offset))


def test_bins_of_whole_pixels_have_as_many_samples_as_pixels(ours):
    """Float32 rounds the edges of moved bins, which must not add samples."""
    generator = torch.Generator().manual_seed(0)
    maps = torch.randn(1, 1, 60, 60, generator=generator)
    corner = torch.rand(64, 2, generator=generator) * 100
    rois = torch.cat((torch.zeros(64, 1), corner.floor(), corner.floor() + 84), dim=1)
    offset = torch.randn(64, 2, 7, 7, generator=generator)
    args = (7, 7), 0.25, 0, GAMMA
    actual = mmcv.ops.deform_roi_pool(maps, rois, offset, *args)
    exact = mmcv.ops.deform_roi_pool(maps, rois, offset, (7, 7), 0.25, 3, GAMMA)
    torch.testing.assert_close(actual, exact, rtol=1e-5, atol=1e-5)
    double = (v.double() for v in (maps, rois, offset))
    expected = mmcv.ops.deform_roi_pool(*double, (7, 7), 0.25, 3, GAMMA).float()
    torch.testing.assert_close(actual, expected, rtol=2e-5, atol=2e-5)


def test_inverted_rois_have_no_samples(ours):
    maps, _, offset = make_inputs()
    rois = torch.tensor([[0, 30.0, 4, 9, 20], [1, 30, 20, 9, 4]]).double()
    results = run(maps, rois, offset[:2])
    assert not any(values.any() for values in results)


def test_no_rois_and_no_images(ours):
    maps, rois, offset = make_inputs(torch.float32)
    output, grad = run(maps, rois[:0], offset[:0])[:2]
    assert output.shape == (0, 3, *SIZE)
    assert not grad.any()
    assert run(maps[:0], rois[:0], None)[1].shape == (0, 3, 9, 11)


def test_channels_last(ours):
    maps, rois, offset = make_inputs()
    actual = run(maps.to(memory_format=torch.channels_last), rois, offset)
    torch.testing.assert_close(actual, run(maps, rois, offset))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("roi_dtype", [None, torch.float32])
def test_half_precision_and_autocast(ours, dtype, roi_dtype):
    maps, rois, offset = make_inputs(dtype)
    expected = run(maps.float(), rois.float(), offset.float())
    for enabled in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            actual = run(maps, rois.to(roi_dtype or dtype), offset)
        assert {v.dtype for v in actual} == {dtype}
        for values, reference in zip(actual, expected, strict=True):
            wide = 0.01 * reference.abs().max().item()
            torch.testing.assert_close(values.float(), reference, rtol=0.02, atol=wide)


@pytest.mark.parametrize("kind", ["DeformRoIPoolPack", "ModulatedDeformRoIPoolPack"])
def test_packs_train(ours, kind):
    maps, rois, _ = make_inputs(torch.float32)
    layer = getattr(mmcv.ops, kind)(SIZE, 3, 8, SCALE)
    torch.nn.init.normal_(layer.offset_fc[-1].weight)
    layer(maps.requires_grad_(), rois).square().sum().backward()
    assert layer.offset_fc[0].weight.grad.any()
    assert maps.grad.isfinite().all()


@pytest.mark.gpu
@pytest.mark.parametrize("ratio", [0, 2])
def test_gpu_equals_cpu(ours, ratio):
    inputs = make_inputs(torch.float32)
    actual = run(*(v.cuda() for v in inputs), ratio)
    expected = run(*inputs, ratio)
    for values, reference in zip(actual, expected, strict=True):
        torch.testing.assert_close(values.cpu(), reference, rtol=1e-4, atol=1e-4)


@pytest.mark.gpu
@pytest.mark.parametrize("ratio", [0, 2])
def test_gpu_equals_the_compiled_operator(compiled, request, ratio):
    inputs = [v.cuda() for v in make_inputs(torch.float32)]
    expected = run(*inputs, ratio)
    request.getfixturevalue("ours")
    torch.testing.assert_close(run(*inputs, ratio), expected, rtol=1e-4, atol=1e-4)
