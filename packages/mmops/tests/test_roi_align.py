"""The operators of roi_align.py through mmcv.ops."""

import mmcv.ops
import pytest
import torch
from bilinear_twin import interpolate, sample_bin

LOWEST = torch.finfo(torch.float32).min
ROIS = [
    [0, 3.0, 5.0, 41.0, 33.0],
    [1, -9.0, -7.0, 20.0, 15.0],  # beyond the upper left corner
    [1, 30.3, 21.7, 80.0, 60.0],  # beyond the lower right corner
    [0, 200.0, 200.0, 220.0, 230.0],  # outside
    [0, 11.0, 12.0, 11.9, 12.8],  # within a pixel
    [1, 8.0, 8.0, 8.0, 8.0],  # without area
    [0, 0.0, 0.0, 4.0, 36.0],  # narrow
]
MODES = pytest.mark.parametrize("mode", ["avg", "max"])


def make_inputs(dtype=torch.float64, channels: int = 3):
    generator = torch.Generator().manual_seed(0)
    maps = torch.randn(2, channels, 9, 11, generator=generator, dtype=torch.float64)
    return maps.to(dtype), torch.tensor(ROIS, dtype=dtype)


def twin(maps, rois, size, scale, ratio, mode, aligned):
    output = []
    for image, *box in rois.tolist():
        x1, y1, x2, y2 = (v * scale - 0.5 * aligned for v in box)
        height, width = y2 - y1, x2 - x1
        if not aligned:
            height, width = max(height, 1), max(width, 1)
        for plane in maps[int(image)]:
            for row in range(size[0]):
                for column in range(size[1]):
                    values = [
                        interpolate(plane, y, x)
                        for y in sample_bin(y1, height, size[0], row, ratio)
                        for x in sample_bin(x1, width, size[1], column, ratio)
                    ] or [plane.sum() * 0 + (LOWEST if mode == "max" else 0)]
                    values = torch.stack(values)
                    output.append(values.max() if mode == "max" else values.mean())
    return torch.stack(output).view(len(rois), -1, *size)


def run(maps, rois, size=(3, 2), scale=0.25, ratio=0, mode="avg", aligned=True):
    """Return the output and the gradient of a weighted sum of it."""
    maps = maps.detach().requires_grad_()
    output = mmcv.ops.roi_align(maps, rois, size, scale, ratio, mode, aligned)
    weight = torch.linspace(-1, 2, output.numel()).view(output.shape)
    output.backward(weight.to(output))
    return output.detach(), maps.grad


@MODES
@pytest.mark.parametrize("ratio", [0, 2])
@pytest.mark.parametrize("aligned", [False, True])
def test_values_and_gradients(ours, mode, ratio, aligned):
    maps, rois = make_inputs()
    output, grad = run(maps, rois, ratio=ratio, mode=mode, aligned=aligned)
    maps.requires_grad_()
    expected = twin(maps, rois, (3, 2), 0.25, ratio, mode, aligned)
    torch.testing.assert_close(output, expected)
    weight = torch.linspace(-1, 2, expected.numel()).view(expected.shape)
    expected.backward(weight.double())
    torch.testing.assert_close(grad, maps.grad, rtol=1e-6, atol=1e-7)


@MODES
def test_gradcheck(ours, mode):
    maps, rois = make_inputs(channels=1)
    maps.requires_grad_()

    def pool(maps):
        return mmcv.ops.roi_align(maps, rois[:5], 2, 0.25, 2, mode, True)

    assert torch.autograd.gradcheck(pool, maps)


@MODES
def test_no_rois_and_no_images(ours, mode):
    maps, rois = make_inputs(torch.float32)
    output, grad = run(maps, rois[:0], mode=mode)
    assert output.shape == (0, 3, 3, 2)
    assert not grad.any()
    output, grad = run(maps[:0], rois[:0], mode=mode)
    assert grad.shape == (0, 3, 9, 11)


@MODES
def test_channels_last(ours, mode):
    maps, rois = make_inputs()
    expected = run(maps, rois, mode=mode)
    actual = run(maps.to(memory_format=torch.channels_last), rois, mode=mode)
    torch.testing.assert_close(actual, expected)


@MODES
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("roi_dtype", [None, torch.float32])
def test_half_precision_and_autocast(ours, mode, dtype, roi_dtype):
    maps, rois = make_inputs(dtype)
    rois = rois[[0, 1, 2, 4, 6]]
    expected = run(maps.float(), rois.float(), mode=mode)
    for enabled in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            actual = run(maps, rois.to(roi_dtype or dtype), mode=mode)
        assert {v.dtype for v in actual} == {dtype}
        tolerance = 0.03 if dtype == torch.bfloat16 else 0.004
        # The places of the largest samples are rounded too.
        wide = 4 * tolerance * expected[1].abs().max().item()
        torch.testing.assert_close(
            actual[0].float(), expected[0], rtol=tolerance, atol=tolerance
        )
        torch.testing.assert_close(
            actual[1].float(), expected[1], rtol=tolerance, atol=wide
        )


@MODES
def test_inverted_rois_raise_as_in_mmcv(ours, mode):
    maps, _ = make_inputs()
    rois = torch.tensor([[0, 8.0, 8.0, 4.0, 12.0]], dtype=torch.float64)
    with pytest.raises(ValueError, match="order the corners"):
        run(maps, rois, mode=mode)
    output, _ = run(maps, rois, mode=mode, aligned=False)
    assert output.isfinite().all()


def test_module(ours):
    maps, rois = make_inputs()
    layer = mmcv.ops.RoIAlign((3, 2), 0.25, sampling_ratio=2)
    torch.testing.assert_close(layer(maps, rois), run(maps, rois, ratio=2)[0])


@MODES
@pytest.mark.parametrize("ratio", [0, 3])
@pytest.mark.parametrize("aligned", [False, True])
def test_equal_to_the_compiled_operator(compiled, request, mode, ratio, aligned):
    maps, rois = make_inputs(torch.float32)
    if mode == "max":
        rois = rois[[0, 1, 2, 3, 4, 6]]  # mmcv's CPU kernel gives empty bins -10000
    args = dict(size=(7, 5), ratio=ratio, mode=mode, aligned=aligned)
    expected = run(maps, rois, **args)
    request.getfixturevalue("ours")
    torch.testing.assert_close(run(maps, rois, **args), expected, rtol=1e-6, atol=1e-6)


@MODES
def test_buffers_equal_the_compiled_operators(compiled, ours, mode):
    maps, rois = make_inputs(torch.float32)
    rois, results = rois[:3], []
    for module in (compiled, ours):
        shapes = [(3, 3, 4, 4)] + [(3, 3, 4, 4) if mode == "max" else (0,)] * 2
        buffers = [torch.zeros(shape) for shape in shapes]
        module.roi_align_forward(
            maps,
            rois,
            *buffers,
            aligned_height=4,
            aligned_width=4,
            spatial_scale=0.25,
            sampling_ratio=0,
            pool_mode=0 if mode == "max" else 1,
            aligned=True,
        )
        results.append(buffers)
    torch.testing.assert_close(*results, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_float32_rois_keep_their_place_in_float16_maps(ours, device):
    """Above 2048, float16 counts every second pixel only."""
    maps = torch.arange(3000.0, device=device).remainder(7).half().expand(1, 1, 4, -1)
    rois = torch.tensor([[0, 2051.0, 1, 2053, 3]], device=device)
    for ours_, theirs in zip(
        run(maps, rois, scale=1.0),
        run(maps.float(), rois, scale=1.0),
        strict=True,
    ):
        assert ours_.dtype == torch.float16
        torch.testing.assert_close(ours_.float(), theirs, rtol=0.002, atol=0.002)


@pytest.mark.gpu
@MODES
@pytest.mark.parametrize("ratio", [0, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_gpu_equals_cpu(ours, mode, ratio, dtype):
    maps, rois = make_inputs(dtype)
    rois = rois[[0, 2, 4, 6]]
    expected = run(maps.float(), rois.float(), ratio=ratio, mode=mode)
    actual = run(maps.cuda(), rois.cuda(), ratio=ratio, mode=mode)
    tolerance = {torch.float32: 1e-5, torch.float16: 0.01, torch.bfloat16: 0.05}[dtype]
    for values, reference in zip(actual, expected, strict=True):
        wide = 4 * tolerance * reference.abs().max().item()
        torch.testing.assert_close(
            values.cpu().float(), reference, rtol=tolerance, atol=wide
        )


@pytest.mark.gpu
@MODES
@pytest.mark.parametrize("ratio", [0, 2])
def test_gpu_equals_the_compiled_operator(compiled, request, mode, ratio):
    maps, rois = (v.cuda() for v in make_inputs(torch.float32))
    expected = run(maps, rois, ratio=ratio, mode=mode)
    request.getfixturevalue("ours")
    actual = run(maps, rois, ratio=ratio, mode=mode)
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)
