"""Deformable convolutions beside their definition and the compiled operators."""

import math

import mmcv.ops
import pytest
import torch
from mmcv.ops.deform_conv import deform_conv2d
from mmcv.ops.modulated_deform_conv import modulated_deform_conv2d
from torch import Tensor

# kernel, stride, padding, dilation, groups, deform groups
GEOMETRIES = [
    ((3, 3), 1, 1, 1, 1, 1),
    ((3, 2), (2, 1), (1, 2), (1, 2), 2, 1),
    ((1, 1), 1, 0, 1, 1, 2),
    ((2, 3), (1, 2), (2, 0), (2, 1), 2, 4),
]


def example(geometry, dtype=torch.float64, images: int = 2) -> tuple:
    """Return input, offset, mask, weight, bias and the arguments after them."""
    kernel, stride, padding, dilation, groups, deform_groups = geometry
    pairs = [(v, v) if isinstance(v, int) else v for v in geometry[1:4]]
    size = (7, 9)
    out = [
        (size[i] + 2 * pairs[1][i] - pairs[2][i] * (kernel[i] - 1) - 1) // pairs[0][i]
        + 1
        for i in range(2)
    ]
    generator = torch.Generator().manual_seed(1)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    points = deform_groups * math.prod(kernel)
    tensors = (
        random(images, 8, *size),
        2 * random(images, 2 * points, *out),
        random(images, points, *out).sigmoid(),
        random(6, 8 // groups, *kernel),
        random(6),
    )
    return tensors, pairs, (stride, padding, dilation, groups, deform_groups)


def sample(plane: Tensor, y: Tensor, x: Tensor) -> Tensor:
    """Interpolate linearly between pixels, with zeros around the map."""
    result = plane.new_zeros(())
    y0, x0 = math.floor(y.item()), math.floor(x.item())
    for row in (y0, y0 + 1):
        for column in (x0, x0 + 1):
            if 0 <= row < plane.size(0) and 0 <= column < plane.size(1):
                factor = (1 - (y - row).abs()) * (1 - (x - column).abs())
                result = result + factor * plane[row, column]
    return result


def naive(tensors, pairs, groups: int, deform_groups: int) -> Tensor:
    """The definition, a sample at a time."""
    image, offset, mask, weight, bias = tensors
    stride, pad, dilation = pairs
    kernel = weight.shape[2:]
    out = offset.shape[2:]
    result = bias.view(1, -1, 1, 1).expand(len(image), -1, *out).clone()
    channels, out_channels = image.size(1) // groups, len(weight) // groups
    for n in range(len(image)):
        for c in range(image.size(1)):
            deform = c // (image.size(1) // deform_groups)
            group = c // channels
            outputs = slice(group * out_channels, (group + 1) * out_channels)
            for i in range(kernel[0]):
                for j in range(kernel[1]):
                    point = (deform * kernel[0] + i) * kernel[1] + j
                    for h in range(out[0]):
                        for w in range(out[1]):
                            y = h * stride[0] - pad[0] + i * dilation[0]
                            x = w * stride[1] - pad[1] + j * dilation[1]
                            value = mask[n, point, h, w] * sample(
                                image[n, c],
                                y + offset[n, 2 * point, h, w],
                                x + offset[n, 2 * point + 1, h, w],
                            )
                            taps = weight[outputs, c % channels, i, j]
                            result[n, outputs, h, w] += value * taps
    return result


def plain(tensors, args, **kwargs) -> Tensor:
    image, offset, _, weight, _ = tensors
    stride, padding, dilation, groups, deform_groups = args
    return deform_conv2d(
        image,
        offset,
        weight,
        stride,
        padding,
        dilation,
        groups,
        deform_groups,
        False,
        kwargs.get("step", 32),
    )


def modulated(tensors, args) -> Tensor:
    return modulated_deform_conv2d(*tensors, *args)


def with_grads(convolve, tensors, *args, **kwargs) -> list[Tensor]:
    """Return the result and its gradients for a fixed, uneven loss."""
    tensors = [tensor.detach().clone().requires_grad_() for tensor in tensors]
    result = convolve(tensors, *args, **kwargs)
    factors = torch.arange(result.numel(), device=result.device).sin().view_as(result)
    loss = (result.double() * factors).sum()
    grads = torch.autograd.grad(loss, tensors, allow_unused=True)
    return [result.detach(), *(grad for grad in grads if grad is not None)]


def assert_near(result: list[Tensor], expected: list[Tensor], tolerance: float):
    """Compare tensors relative to their largest entry."""
    assert len(result) == len(expected)
    for ours, theirs in zip(result, expected, strict=True):
        assert ours.shape == theirs.shape
        bound = tolerance * max(theirs.abs().max().item(), 1)
        assert (ours.double() - theirs.double()).abs().max() <= bound


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_definition(ours, geometry):
    tensors, pairs, args = example(geometry)
    expected = naive(tensors, pairs, *args[3:])
    assert_near([modulated(tensors, args)], [expected], 1e-12)
    image, offset, mask, weight, bias = tensors
    tensors = (image, offset, torch.ones_like(mask), weight, torch.zeros_like(bias))
    assert_near([plain(tensors, args)], [naive(tensors, pairs, *args[3:])], 1e-12)


@pytest.mark.parametrize("convolve", [plain, modulated])
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_gradients(ours, geometry, convolve):
    tensors, _, args = example(geometry)
    for tensor in tensors:
        tensor.requires_grad_()
    torch.autograd.gradcheck(
        lambda *tensors: convolve(tensors, args), tensors, fast_mode=True
    )


@pytest.mark.parametrize("convolve", [plain, modulated])
@pytest.mark.parametrize("only", range(5))
def test_one_gradient_alone(ours, convolve, only):
    tensors, _, args = example(GEOMETRIES[1])
    names = [0, 1, 3] if convolve is plain else range(5)
    if only not in names:
        pytest.skip("no such argument")
    expected = with_grads(convolve, tensors, args)[1 + list(names).index(only)]
    tensors = [tensor.requires_grad_(i == only) for i, tensor in enumerate(tensors)]
    result = convolve(tensors, args)
    factors = torch.arange(result.numel()).sin().view_as(result)
    (result * factors).sum().backward(retain_graph=True)
    assert_near([tensors[only].grad], [expected], 1e-12)
    # A second pass through the same graph doubles the sum.
    (result * factors).sum().backward()
    assert_near([tensors[only].grad], [2 * expected], 1e-12)


@pytest.mark.parametrize("convolve", [plain, modulated])
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_whole_offsets_leave_no_gradient_at_the_outer_border(ours, geometry, convolve):
    """Where a sample lies exactly one pixel off the map, mmcv has no derivative."""
    tensors, pairs, args = example(geometry)
    tensors[1].round_()
    grads = with_grads(convolve, tensors, args)[2]
    kernel = geometry[0]
    grads = grads.unflatten(1, (geometry[5], *kernel, 2))
    offset = tensors[1].unflatten(1, (geometry[5], *kernel, 2))
    for i in range(kernel[0]):
        for j in range(kernel[1]):
            for axis, tap in enumerate((i, j)):
                stride, pad, dilation = (pair[axis] for pair in pairs)
                pixel = torch.arange(offset.shape[5 + axis]) * stride
                pixel = pixel.view((-1, 1) if axis == 0 else (-1,))
                position = offset[:, :, i, j, axis] + pixel - pad + tap * dilation
                assert not grads[:, :, i, j, axis][position <= -1].any()


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("convolve", [plain, modulated])
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_equals_compiled(ours, compiled, monkeypatch, geometry, convolve, dtype, whole):
    tensors, _, args = example(geometry, dtype)
    if whole:
        tensors[1].round_()
    result = with_grads(convolve, tensors, args)
    monkeypatch.setattr(mmcv.ops.deform_conv, "ext_module", compiled)
    monkeypatch.setattr(mmcv.ops.modulated_deform_conv, "ext_module", compiled)
    expected = with_grads(convolve, tensors, args)
    assert_near(result, expected, 1e-6 if dtype == torch.float32 else 1e-13)


def larger_level() -> list[Tensor]:
    """Return input, offset, mask, weight and bias; offset and mask of another level."""
    generator = torch.Generator().manual_seed(2)
    shapes = [(2, 4, 5, 6), (2, 18, 9, 12), (2, 9, 9, 12), (6, 4, 3, 3), (6,)]
    return [
        torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes
    ]


def test_offsets_of_a_larger_level(ours):
    """As in mmdet's DyHead: the numbers are read as maps of the output's size."""
    tensors = larger_level()
    image, offset, mask, *rest = tensors
    cut = [
        maps.reshape(2, -1)[:, : points * 30].reshape(2, points, 5, 6)
        for maps, points in ((offset, 18), (mask, 9))
    ]
    expected = with_grads(modulated, [image, *cut, *rest], (1, 1, 1, 1, 1))
    result = with_grads(modulated, tensors, (1, 1, 1, 1, 1))
    for i, points in ((2, 18), (3, 9)):
        whole = torch.zeros_like(result[i]).reshape(2, -1)
        whole[:, : points * 30] = expected[i].reshape(2, -1)
        expected[i] = whole.view_as(result[i])
    assert_near(result, expected, 1e-12)


def test_offsets_of_a_larger_level_equal_compiled(ours, compiled, monkeypatch):
    tensors = [tensor.float() for tensor in larger_level()]
    result = with_grads(modulated, tensors, (1, 1, 1, 1, 1))
    monkeypatch.setattr(mmcv.ops.modulated_deform_conv, "ext_module", compiled)
    expected = with_grads(modulated, tensors, (1, 1, 1, 1, 1))
    assert_near(result, expected, 1e-6)


def test_offsets_of_a_smaller_level(ours):
    image, offset, mask, weight, bias = larger_level()
    with pytest.raises(ValueError, match=r"\(4, 4\) for an output of \(5, 6\)"):
        modulated_deform_conv2d(
            image, offset[..., :4, :4], mask[..., :4, :4], weight, bias, 1, 1
        )


def test_steps_of_images_do_not_matter(ours):
    tensors, _, args = example(GEOMETRIES[1], images=4)
    expected = with_grads(plain, tensors, args)
    for step in (1, 2):
        assert_near(with_grads(plain, tensors, args, step=step), expected, 1e-12)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("convolve", [plain, modulated])
def test_half_precision(ours, convolve, dtype):
    tensors, _, args = example(GEOMETRIES[0], dtype)
    result = with_grads(convolve, tensors, args)
    expected = with_grads(convolve, [tensor.double() for tensor in tensors], args)
    assert all(tensor.dtype == dtype for tensor in result)
    assert_near(result, expected, 8 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("convolve", [plain, modulated])
def test_sums_over_images_are_rounded_once(ours, convolve):
    tensors, _, args = example(GEOMETRIES[0], torch.bfloat16, images=32)
    kwargs = dict(step=1) if convolve is plain else {}
    result = with_grads(convolve, tensors, args, **kwargs)
    double = [tensor.double() for tensor in tensors]
    expected = with_grads(convolve, double, args, **kwargs)
    weight = 3 if convolve is plain else 4
    error = (result[weight].double() - expected[weight]).norm()
    assert error < 0.003 * expected[weight].norm()


@pytest.mark.parametrize("convolve", [plain, modulated])
def test_layout(ours, convolve):
    tensors, _, args = example(GEOMETRIES[1])
    expected = with_grads(convolve, tensors, args)
    last = [
        t.contiguous(memory_format=torch.channels_last) if t.dim() == 4 else t
        for t in tensors
    ]
    assert_near(with_grads(convolve, last, args), expected, 1e-12)


MODULES = {
    "DeformConv2dPack": lambda: mmcv.ops.DeformConv2dPack(4, 6, 3, padding=1),
    "ModulatedDeformConv2dPack": lambda: mmcv.ops.ModulatedDeformConv2dPack(
        4, 6, 3, padding=1, deform_groups=2
    ),
    "SAConv2d": lambda: mmcv.ops.SAConv2d(4, 6, 3, padding=1, use_deform=True),
}


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("name", MODULES)
def test_modules_train(ours, name, autocast):
    torch.manual_seed(0)
    module = MODULES[name]()
    image = torch.randn(2, 4, 8, 9, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        output = module(image)
    output.float().square().mean().backward()
    assert output.shape == (2, 6, 8, 9)
    assert image.grad.isfinite().all() and image.grad.any()
    grads = [p.grad for p in module.parameters() if p.grad is not None]
    # SAConv2d never uses its bias.
    assert len(grads) >= len(list(module.parameters())) - 1
    assert all(grad.isfinite().all() for grad in grads)


@pytest.mark.parametrize("name", MODULES)
def test_modules_equal_compiled(ours, compiled, monkeypatch, name):
    torch.manual_seed(0)
    module = MODULES[name]()
    image = torch.randn(2, 4, 8, 9)

    def train() -> list[Tensor]:
        module.zero_grad(set_to_none=True)
        output = module(image)
        output.square().mean().backward()
        grads = [p.grad for p in module.parameters() if p.grad is not None]
        return [output.detach(), *grads]

    result = train()
    monkeypatch.setattr(mmcv.ops.deform_conv, "ext_module", compiled)
    monkeypatch.setattr(mmcv.ops.modulated_deform_conv, "ext_module", compiled)
    assert_near(result, train(), 1e-6)


def test_input_smaller_than_the_kernel(ours):
    """DeformConv2d pads such an input and crops the result."""
    torch.manual_seed(0)
    module = mmcv.ops.DeformConv2d(4, 6, 3, padding=1)
    output = module(torch.randn(1, 4, 2, 2), torch.randn(1, 18, 2, 2))
    assert output.shape == (1, 6, 2, 2) and output.isfinite().all()


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("convolve", [plain, modulated])
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_gpu_equals_cpu(ours, no_sync, geometry, convolve, dtype):
    tensors, _, args = example(geometry, dtype)
    expected = with_grads(convolve, [tensor.double() for tensor in tensors], args)
    cuda = [tensor.cuda(non_blocking=True) for tensor in tensors]
    result = with_grads(convolve, cuda, args)
    torch.cuda.set_sync_debug_mode("default")
    result = [tensor.cpu() for tensor in result]
    assert_near(result, expected, 16 * torch.finfo(dtype).eps)
