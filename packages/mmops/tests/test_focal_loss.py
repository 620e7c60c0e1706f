"""Focal losses beside their definitions."""

import mmcv.ops
import pytest
import torch
from torch import Tensor

GAMMA, ALPHA = 2.0, 0.25


def naive_sigmoid(logits: Tensor, target: Tensor, weight: Tensor | None) -> Tensor:
    """The definition, an entry at a time."""
    loss = torch.zeros_like(logits)
    for n, row in enumerate(logits):
        for c, x in enumerate(row):
            positive = target[n] == c
            p = torch.sigmoid(x if positive else -x)
            alpha = ALPHA if positive else 1 - ALPHA
            loss[n, c] = -alpha * (1 - p) ** GAMMA * p.log()
            if weight is not None and 0 <= target[n] < len(row):
                loss[n, c] = loss[n, c] * weight[target[n]]
    return loss


def naive_softmax(logits: Tensor, target: Tensor, weight: Tensor | None) -> Tensor:
    """The definition, a row at a time."""
    loss = torch.zeros_like(logits[:, 0])
    for n, row in enumerate(logits):
        if 0 <= target[n] < len(row):
            p = (row - row.logsumexp(0)).exp()[target[n]]
            loss[n] = -ALPHA * (1 - p) ** GAMMA * p.log()
            if weight is not None:
                loss[n] = loss[n] * weight[target[n]]
    return loss


LOSSES = [
    (mmcv.ops.sigmoid_focal_loss, naive_sigmoid),
    (mmcv.ops.softmax_focal_loss, naive_softmax),
]


def example(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(9, 5, generator=generator, dtype=torch.float64)
    return logits.to(dtype), torch.tensor([0, 1, 2, 3, 4, 5, -1, 5, 0])


def with_grad(loss, logits: Tensor, *args) -> tuple[Tensor, Tensor]:
    logits = logits.detach().clone().requires_grad_()
    value = loss(logits, *args)
    return value.detach(), torch.autograd.grad(value.sum(), logits)[0]


@pytest.mark.parametrize("reduction", ["sum", "mean"])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("loss, naive", LOSSES)
def test_definition(ours, loss, naive, weighted, reduction):
    logits, target = example()
    weight = torch.linspace(0.5, 2, 5, dtype=torch.float64) if weighted else None
    result = with_grad(loss, logits, target, GAMMA, ALPHA, weight, reduction)
    expected = with_grad(naive, logits, target, weight)
    scale = len(logits) if reduction == "mean" else 1
    torch.testing.assert_close(result[0], expected[0].sum() / scale)
    torch.testing.assert_close(result[1], expected[1] / scale)


@pytest.mark.parametrize("loss, naive", LOSSES)
def test_entries(ours, loss, naive):
    logits, target = example()
    result = loss(logits, target, GAMMA, ALPHA, None, "none")
    torch.testing.assert_close(result, naive(logits, target, None))


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0])
@pytest.mark.parametrize("loss", [loss for loss, _ in LOSSES])
def test_gradcheck(ours, loss, gamma):
    logits, target = example()

    def total(logits: Tensor) -> Tensor:
        return loss(logits, target, gamma, ALPHA, None, "sum")

    torch.autograd.gradcheck(total, logits.requires_grad_())


@pytest.mark.parametrize("size", [100.0, 1e4])
@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
@pytest.mark.parametrize("loss", [loss for loss, _ in LOSSES])
def test_extreme_logits(ours, loss, dtype, gamma, size):
    logits = torch.tensor([[size, -size, 0], [-size, size, 0]], dtype=dtype)
    for target in (0, 1, 2, 3):
        target = torch.full((2,), target)
        value, grad = with_grad(loss, logits, target, gamma, ALPHA, None, "sum")
        assert value.isfinite() and grad.isfinite().all()


def test_loss_of_a_certain_mistake_is_linear(ours):
    logits = torch.tensor([[100.0], [-100.0]], dtype=torch.float64)
    value = mmcv.ops.sigmoid_focal_loss(
        logits, torch.tensor([1, 0]), GAMMA, ALPHA, None, "none"
    )
    torch.testing.assert_close(value, logits.abs() * torch.tensor([[0.75], [0.25]]))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("loss, naive", LOSSES)
def test_half_precision(ours, loss, naive, dtype):
    logits, target = example(dtype)
    value, grad = with_grad(loss, logits, target, GAMMA, ALPHA, None, "sum")
    expected = with_grad(naive, logits.double(), target, None)
    assert value.dtype == grad.dtype == dtype
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(
        value.double(), expected[0].sum(), rtol=4 * eps, atol=4 * eps
    )
    torch.testing.assert_close(grad.double(), expected[1], rtol=4 * eps, atol=4 * eps)


@pytest.mark.parametrize("loss", [loss for loss, _ in LOSSES])
def test_layout_and_autocast(ours, loss):
    logits, target = example(torch.float32)
    args = (target, GAMMA, ALPHA, None, "sum")
    expected = with_grad(loss, logits, *args)
    transposed = logits.t().contiguous().t()
    with torch.autocast("cpu", torch.bfloat16):
        result = with_grad(loss, transposed, *args)
    assert result[0].dtype == result[1].dtype == torch.float32
    torch.testing.assert_close(result, expected)


@pytest.mark.parametrize("loss", [loss for loss, _ in LOSSES])
def test_no_rows(ours, loss):
    args = (torch.zeros(0, dtype=torch.long), GAMMA, ALPHA, None, "sum")
    value, grad = with_grad(loss, torch.zeros(0, 5), *args)
    assert value == 0 and grad.shape == (0, 5)


def test_equals_the_formula_of_mmdet(ours):
    losses = pytest.importorskip("mmdet.models.losses.focal_loss")
    logits, target = example(torch.float32)
    target[6] = 5
    one_hot = torch.nn.functional.one_hot(target, 6)[:, :5]
    expected = with_grad(
        losses.py_sigmoid_focal_loss, logits, one_hot, None, GAMMA, ALPHA, "none"
    )
    result = with_grad(
        lambda *args: mmcv.ops.sigmoid_focal_loss(*args, "sum"),
        logits,
        target,
        GAMMA,
        ALPHA,
        None,
    )
    torch.testing.assert_close(result[0], expected[0].sum())
    torch.testing.assert_close(result[1], expected[1])


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("loss", [loss for loss, _ in LOSSES])
def test_gpu_equals_cpu(ours, no_sync, loss, dtype):
    logits, target = example(dtype)
    args = (GAMMA, ALPHA, None, "sum")
    expected = with_grad(loss, logits, target, *args)
    result = with_grad(
        loss, logits.cuda(non_blocking=True), target.cuda(non_blocking=True), *args
    )
    torch.cuda.set_sync_debug_mode("default")
    torch.testing.assert_close([t.cpu() for t in result], list(expected))


@pytest.mark.gpu
@pytest.mark.parametrize("loss", [loss for loss, _ in LOSSES])
def test_equals_compiled_on_gpus(ours, compiled, monkeypatch, loss):
    logits, target = (tensor.cuda() for tensor in example(torch.float32))
    # The compiled softmax loss reads outside of its memory for background rows.
    target = target.clamp(0, 4)
    args = (target, GAMMA, ALPHA, None, "sum")
    result = with_grad(loss, logits, *args)
    monkeypatch.setattr(mmcv.ops.focal_loss, "ext_module", compiled)
    torch.testing.assert_close(result, with_grad(loss, logits, *args))
