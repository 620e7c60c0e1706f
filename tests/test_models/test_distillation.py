"""Hedgehog's distillation: the loss by its formula, and that it teaches."""

import math

import pytest
import torch
from core_cases import HEAD_DIM, HEADS, build_shaken, draw
from core_twins import dense_hedgehog

from ravlt.models.attention import CORES
from ravlt.models.attention.distillation import distillation_loss
from ravlt.models.attention.hedgehog import NORMALISATIONS, HedgehogCore


def softmax_weights(q, k):
    scores = torch.einsum("bhid,bhjd->bhij", q, k) / math.sqrt(q.shape[-1])
    return scores.exp() / scores.exp().sum(-1, keepdim=True)


def test_loss_and_gradients_by_the_formula():
    core = build_shaken("hedgehog")
    q, k, _ = draw((4, 5))
    loss = distillation_loss(core, q, k, (4, 5))
    weights = dense_hedgehog(core, q.detach(), k.detach(), None, (4, 5))
    expected = 0
    p = softmax_weights(q.detach(), k.detach())
    for i in range(20):
        for j in range(20):
            expected = (
                expected - (p[:, :, i, j] * weights[:, :, i, j].log()).mean() / 20
            )
    torch.testing.assert_close(loss, expected, rtol=0, atol=1e-10)
    parameters = [*core.parameters()]
    grads = torch.autograd.grad(loss, parameters, retain_graph=True)
    for got, wanted in zip(
        grads, torch.autograd.grad(expected, parameters), strict=True
    ):
        torch.testing.assert_close(got, wanted, rtol=0, atol=1e-10)
    loss.backward()
    assert q.grad is None and k.grad is None  # of the network that is converted


def test_no_loss_is_below_the_entropy_of_softmax():
    q, k, _ = (t.detach() for t in draw((4, 5)))
    p = softmax_weights(q, k)
    entropy = -(p * p.log()).sum(-1).mean()
    for name in NORMALISATIONS:
        core = build_shaken("hedgehog", normalisation=name)
        assert distillation_loss(core, q, k, (4, 5)) > entropy


@pytest.mark.parametrize("scale", [0, 1, 1e4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_finite_whatever_the_size_of_inputs(dtype, scale):
    core = HedgehogCore(HEADS * HEAD_DIM, HEADS)
    q, k, _ = (t.detach().to(dtype) * scale for t in draw((4, 5)))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = distillation_loss(core, q, k, (4, 5))
    assert loss.dtype == torch.float32
    assert loss.isfinite()
    loss.backward()
    assert all(p.grad.isfinite().all() for p in core.parameters())


def ranks(x: torch.Tensor) -> torch.Tensor:
    return x.argsort(-1).argsort(-1).double()


def correlation(weights: torch.Tensor, scores: torch.Tensor) -> float:
    """Spearman's, of each row; the mean."""
    pairs = torch.stack(
        (ranks(weights).flatten(0, -2), ranks(scores).flatten(0, -2)), 1
    )
    return torch.stack([torch.corrcoef(pair)[0, 1] for pair in pairs]).mean().item()


def test_distillation_teaches_the_weights_of_softmax():
    """A few hundred steps on one layer of 196 tokens, one head of 64 channels."""
    generator = torch.Generator().manual_seed(0)
    q, k = torch.randn(2, 1, 1, 196, 64, generator=generator)
    core = CORES["hedgehog"](64, 1)
    p = softmax_weights(q, k)

    def measure() -> tuple[float, float]:
        weights = core.dense(q, k, k, (14, 14)).detach()
        divergence = (p * (p / weights).log()).sum(-1).mean().item()
        return divergence, correlation(weights, q @ k.mT)

    before = measure()
    optimizer = torch.optim.Adam(core.parameters(), 1e-2)
    for _ in range(300):
        optimizer.zero_grad()
        distillation_loss(core, q, k, (14, 14)).backward()
        optimizer.step()
    after = measure()
    assert after[0] < before[0] / 3
    assert after[1] > before[1] + 0.05
