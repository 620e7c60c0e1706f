"""mmcv's synchronized batch normalization beside PyTorch's."""

import mmcv.ops
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from mmcv.ops.sync_bn import SyncBatchNormFunction
from torch import Tensor


def example(*shape: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    channels = shape[1]
    return [
        3 * torch.randn(*shape, generator=generator) + 2,
        torch.rand(channels, generator=generator) + 0.5,
        torch.randn(channels, generator=generator),
    ]


def normalize(
    image: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, var: Tensor, mode: str
) -> Tensor:
    return SyncBatchNormFunction.apply(
        image, mean, var, weight, bias, 0.1, 1e-5, None, 1, mode
    )


def reference(
    image: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, var: Tensor, mode: str
) -> Tensor:
    return F.batch_norm(image, mean, var, weight, bias, True, 0.1, 1e-5)


def train(function, tensors: list[Tensor], mode: str = "default") -> list[Tensor]:
    """Return the output, the gradients and the new running statistics."""
    tensors = [tensor.detach().requires_grad_() for tensor in tensors]
    running = [torch.full_like(tensors[1], value).detach() for value in (0.5, 2.0)]
    result = function(*tensors, *running, mode)
    factors = torch.arange(result.numel(), device=result.device).sin().view_as(result)
    grads = torch.autograd.grad((result * factors).sum(), tensors)
    return [result.detach(), *grads, *running]


@pytest.mark.parametrize("mode", ["default", "N"])
@pytest.mark.parametrize("shape", [(3, 4, 5, 6), (4, 3, 7), (5, 2, 1), (2, 3, 2, 3, 2)])
def test_definition(ours, shape, mode):
    tensors = example(*shape)
    expected = train(reference, [tensor.double() for tensor in tensors])
    result = train(normalize, tensors, mode)
    for ours_, theirs in zip(result, expected, strict=True):
        torch.testing.assert_close(ours_, theirs.float(), rtol=1e-4, atol=1e-5)


def test_one_number_per_channel(ours):
    """The variance of a single number stays biased instead of infinite."""
    *_, mean, var = train(normalize, example(1, 3, 1))
    assert mean.isfinite().all()
    torch.testing.assert_close(var, torch.full((3,), 1.8))


def test_empty_batch(ours):
    result, grad, *parameters, mean, var = train(normalize, example(0, 3, 4, 5), "N")
    assert result.shape == grad.shape == (0, 3, 4, 5)
    assert not any(parameter.any() for parameter in parameters)
    assert mean.tolist() == [0.5] * 3 and var.tolist() == [2.0] * 3


def test_half_precision(ours):
    image, weight, bias = example(3, 4, 5, 6)
    result = train(normalize, [image.half(), weight, bias])
    expected = train(normalize, [image.half().float(), weight, bias])
    assert result[0].dtype == result[1].dtype == torch.float16
    for ours_, theirs in zip(result, expected, strict=True):
        torch.testing.assert_close(ours_.float(), theirs, rtol=4e-3, atol=4e-3)


def test_layout_and_autocast(ours):
    image, weight, bias = example(3, 4, 5, 6)
    expected = train(normalize, [image, weight, bias])
    last = image.contiguous(memory_format=torch.channels_last)
    statistics = [torch.zeros(4), torch.ones(4)]
    ours.sync_bn_forward_mean(last.flatten(2), statistics[0])
    torch.testing.assert_close(statistics[0], image.mean((0, 2, 3)))
    with torch.autocast("cpu", torch.bfloat16):
        result = train(normalize, [image, weight, bias])
    assert result[0].dtype == torch.float32
    torch.testing.assert_close(result, expected)


def test_without_parameters_and_statistics(ours):
    image, _, _ = example(3, 4, 30)
    mean, var, std = torch.zeros(4), torch.zeros(4), torch.zeros(4)
    norm, output = torch.zeros_like(image), torch.zeros_like(image)
    ours.sync_bn_forward_mean(image, mean)
    ours.sync_bn_forward_var(image, mean, var)
    ours.sync_bn_forward_output(
        image,
        mean,
        var,
        None,
        None,
        None,
        None,
        norm,
        std,
        output,
        eps=1e-5,
        momentum=0.1,
        group_size=1,
    )
    expected = F.batch_norm(image, None, None, training=True)
    torch.testing.assert_close(output, expected)


def test_two_processes_count_as_one_batch(ours):
    """The running variance is unbiased for the pixels of all processes."""
    image, weight, bias = example(4, 3, 10)
    expected = train(reference, [image, weight, bias])
    mean, var, norm, std = (torch.zeros(3) for _ in range(4))
    ours.sync_bn_forward_mean(image, mean)
    ours.sync_bn_forward_var(image, mean, var)
    running = [torch.full((3,), 0.5), torch.full((3,), 2.0)]
    half = image[:2]
    norm, output = torch.zeros_like(half), torch.zeros_like(half)
    ours.sync_bn_forward_output(
        half,
        mean,
        var,
        weight,
        bias,
        *running,
        norm,
        std,
        output,
        eps=1e-5,
        momentum=torch.tensor(0.1),
        group_size=2,
    )
    torch.testing.assert_close([output, *running], [expected[0][:2], *expected[-2:]])


def test_module(ours):
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        module = mmcv.ops.SyncBatchNorm(4, momentum=None)
        image = example(3, 4, 5, 6)[0].requires_grad_()
        output = module(image)
        output.square().sum().backward()
        torch.testing.assert_close(module.running_mean, image.mean((0, 2, 3)))
        assert image.grad.isfinite().all() and module.weight.grad.isfinite().all()
    finally:
        dist.destroy_process_group()


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_equals_compiled_on_gpus(ours, compiled, monkeypatch, dtype):
    image, weight, bias = (tensor.cuda() for tensor in example(3, 4, 5, 6))
    tensors = [image.to(dtype), weight, bias]
    result = train(normalize, tensors)
    monkeypatch.setattr("mmcv.ops.sync_bn.ext_module", compiled)
    torch.testing.assert_close(result, train(normalize, tensors), rtol=1e-3, atol=1e-3)
