"""Multi-scale deformable attention beside its definition and mmcv's formula."""

import math

import mmcv.ops
import pytest
import torch
from mmcv.ops.multi_scale_deform_attn import (
    MultiScaleDeformableAttnFunction,
    multi_scale_deformable_attn_pytorch,
)
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

SHAPES = torch.tensor([[5, 7], [3, 2], [1, 1]])


def starts() -> Tensor:
    sizes = SHAPES.prod(1)
    return sizes.cumsum(0) - sizes


def example(
    dtype=torch.float64, images=2, queries=4, heads=2, points=3
) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    tokens, levels = int(SHAPES.prod(1).sum()), len(SHAPES)

    def random(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator, dtype=torch.float64)

    weights = random(images, queries, heads, levels * points).softmax(-1)
    return [
        (random(images, tokens, heads, 5) - 0.5).to(dtype),
        # Some points lie off the map.
        (random(images, queries, heads, levels, points, 2) * 1.6 - 0.3).to(dtype),
        weights.view(images, queries, heads, levels, points).to(dtype),
    ]


def attend(value: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
    device = value.device
    return MultiScaleDeformableAttnFunction.apply(
        value,
        SHAPES.to(device, non_blocking=True),
        starts().to(device, non_blocking=True),
        locations,
        weights,
        64,
    )


def formula(value: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
    return multi_scale_deformable_attn_pytorch(value, SHAPES, locations, weights)


def naive(value: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
    """The definition, a neighbour at a time."""
    images, queries, heads, levels, points = weights.shape
    result = value.new_zeros(images, queries, heads, value.size(-1))
    for n, q, h, level, p in torch.cartesian_prod(
        *(torch.arange(size) for size in weights.shape)
    ).tolist():
        height, width = SHAPES[level].tolist()
        x, y = locations[n, q, h, level, p] * SHAPES[level].flip(0) - 0.5
        x0, y0 = math.floor(x.item()), math.floor(y.item())
        for row in (y0, y0 + 1):
            for column in (x0, x0 + 1):
                if 0 <= row < height and 0 <= column < width:
                    factor = (1 - (y - row).abs()) * (1 - (x - column).abs())
                    token = int(starts()[level]) + row * width + column
                    factor = factor * weights[n, q, h, level, p]
                    result[n, q, h] += factor * value[n, token, h]
    return result.flatten(2)


def with_grads(function, tensors: list[Tensor]) -> list[Tensor]:
    tensors = [tensor.detach().clone().requires_grad_() for tensor in tensors]
    result = function(*tensors)
    factors = torch.arange(result.numel(), device=result.device).sin().view_as(result)
    return [
        result.detach(),
        *torch.autograd.grad((result.double() * factors).sum(), tensors),
    ]


def test_definition(ours):
    tensors = example()
    torch.testing.assert_close(with_grads(attend, tensors), with_grads(naive, tensors))


def test_equals_the_formula_of_mmcv(ours):
    tensors = example(torch.float32, queries=50)
    torch.testing.assert_close(
        with_grads(attend, tensors), with_grads(formula, tensors), rtol=1e-4, atol=1e-5
    )


def test_gradcheck(ours):
    tensors = [tensor.requires_grad_() for tensor in example()]
    torch.autograd.gradcheck(attend, tensors, fast_mode=True)


def test_points_on_pixels_and_at_the_border(ours):
    """The derivative is that of mmcv's kernel: to the right, and none at -1."""
    value = torch.zeros(1, 42, 1, 1, dtype=torch.float64)
    value[0, :35, 0, 0] = torch.arange(35) + 1
    locations = torch.zeros(1, 3, 1, 3, 1, 2, dtype=torch.float64)
    locations[:, :, :, 1:] = -9  # off the other maps
    # Pixel (y 2, x 3), one pixel left of the map, and a quarter more than that.
    pixels = torch.tensor([[3.0, 2.0], [-1.0, 2.0], [-0.75, 2.0]], dtype=torch.float64)
    locations[0, :, 0, 0, 0] = (pixels + 0.5) / torch.tensor([7, 5])
    # Exact in binary, so that the position is exactly -1.
    locations[0, 1, 0, 0, 0, 0] = -0.5 / 7
    weights = torch.zeros(1, 3, 1, 3, 1, dtype=torch.float64)
    weights[..., 0, 0] = 1
    locations.requires_grad_()
    output = attend(value, locations, weights)
    torch.testing.assert_close(
        output.detach().flatten(), torch.tensor([18, 0, 0.25 * 15]).double()
    )
    grad = torch.autograd.grad(output.sum(), locations)[0][0, :, 0, 0, 0, 0]
    torch.testing.assert_close(grad, torch.tensor([7, 0, 7 * 15]).double())


def test_half_precision(ours):
    dtype = torch.float16
    tensors = example(dtype)
    result = with_grads(attend, tensors)
    expected = with_grads(attend, [tensor.double() for tensor in tensors])
    for ours_, theirs in zip(result, expected, strict=True):
        assert ours_.dtype == dtype
        bound = 4 * torch.finfo(dtype).eps * max(theirs.abs().max(), 1)
        assert (ours_.double() - theirs).abs().max() < bound


def test_bfloat16_raises(ours):
    """mmcv rounds locations to the values' dtype, of which bfloat16 has 8 bits."""
    with pytest.raises(NotImplementedError, match="float16 AMP or float32") as raised:
        attend(*example(torch.bfloat16))
    assert "\n" not in str(raised.value)


def test_layout_and_autocast(ours):
    tensors = example(torch.float32)
    expected = with_grads(attend, tensors)
    other = [tensor.transpose(0, 1).contiguous().transpose(0, 1) for tensor in tensors]
    with torch.autocast("cpu", torch.bfloat16):
        result = with_grads(attend, other)
    torch.testing.assert_close(result, expected)


@pytest.mark.parametrize("images, queries", [(0, 4), (2, 0)])
def test_no_queries(ours, images, queries):
    tensors = example(images=images, queries=queries)
    result, *grads = with_grads(attend, tensors)
    assert result.shape == (images, queries, 10)
    assert not any(grad.any() for grad in grads)


class Calls(TorchDispatchMode):
    """Collect the names of PyTorch's operators that run."""

    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.add(function.overloadpacket.__name__)
        return function(*args, **(kwargs or {}))


def test_the_gradient_does_without_the_lookups_own(ours):
    """On GPUs its kernel counts threads with 32 bits, too few for many samples."""
    value, locations, weights = example(torch.float32)
    with Calls() as calls:
        ours.ms_deform_attn_backward(
            value,
            SHAPES,
            starts(),
            locations,
            weights,
            torch.ones(2, 4, 10),
            *(torch.zeros_like(tensor) for tensor in (value, locations, weights)),
            im2col_step=64,
        )
    assert "index_add_" in calls.names
    assert not any("embedding_bag" in name for name in calls.names)


def test_far_points_cost_nothing(ours):
    value, locations, weights = example(torch.float32)
    locations = locations * 1e30
    result = with_grads(attend, [value, locations, weights])
    assert all(tensor.isfinite().all() for tensor in result)


def test_module_runs_the_formula_on_cpus(ours):
    torch.manual_seed(0)
    module = mmcv.ops.MultiScaleDeformableAttention(16, 2, 3, 2, batch_first=True)
    query = torch.randn(2, int(SHAPES.prod(1).sum()), 16, requires_grad=True)
    output = module(
        query,
        reference_points=torch.rand(2, query.size(1), 3, 2),
        spatial_shapes=SHAPES,
        level_start_index=starts(),
    )
    output.sum().backward()
    assert query.grad.isfinite().all()


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_gpu_equals_cpu(ours, no_sync, dtype):
    tensors = example(dtype)
    expected = with_grads(attend, [tensor.double() for tensor in tensors])
    result = with_grads(attend, [tensor.cuda(non_blocking=True) for tensor in tensors])
    torch.cuda.set_sync_debug_mode("default")
    for ours_, theirs in zip(result, expected, strict=True):
        bound = 16 * torch.finfo(dtype).eps * max(theirs.abs().max(), 1)
        assert (ours_.cpu().double() - theirs).abs().max() < bound


@pytest.mark.gpu
def test_gpu_takes_more_samples_than_a_warp_index_of_32_bits(ours):
    copies, tensors = 250_000, example(torch.float32, images=1)
    value, locations, weights = (tensor.cuda() for tensor in tensors)
    assert 4 * copies * weights.numel() > 2**31 // 32

    def attend_copies(*tensors: Tensor) -> Tensor:
        return attend(*tensors).unflatten(1, (copies, -1)).mean(1)

    many = [value, *(t.repeat(1, copies, *[1] * (t.dim() - 2)) for t in tensors[1:])]
    result = with_grads(attend_copies, [t.cuda() for t in many])
    expected = with_grads(attend, [value, locations, weights])
    torch.testing.assert_close(result[:2], expected[:2], rtol=1e-3, atol=1e-4)
    for ours_, theirs in zip(result[2:], expected[2:], strict=True):
        ours_ = copies * ours_.unflatten(1, (copies, -1))
        torch.testing.assert_close(ours_, theirs[:, None].expand_as(ours_))


@pytest.mark.gpu
def test_equals_compiled_on_gpus(ours, compiled, monkeypatch):
    tensors = [tensor.cuda() for tensor in example(torch.float32, queries=50)]
    result = with_grads(attend, tensors)
    monkeypatch.setattr(mmcv.ops.multi_scale_deform_attn, "ext_module", compiled)
    torch.testing.assert_close(
        result, with_grads(attend, tensors), rtol=1e-4, atol=1e-5
    )
