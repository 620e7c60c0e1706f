"""The distillation loss equals its formula, and training lowers it."""

import math
import re

import pytest
import torch

from distill import compare, rank_correlation, run_experiment
from distillation import distillation_loss
from helpers.core_cases import HEAD_DIM, HEADS, build_shaken, draw
from helpers.core_twins import dense_hedgehog
from helpers.tool_runs import ROOT, Run, run_readme_example
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
    assert q.grad is None and k.grad is None  # the converted network gets none


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


def test_distillation_teaches_the_weights_of_softmax():
    before, after = run_experiment(steps=300)
    assert after[0] < before[0] / 3
    assert after[1] > before[1] + 0.05


def test_divergence_is_its_formula():
    core = build_shaken("hedgehog")
    q, k, _ = (t.detach() for t in draw((4, 5)))
    p, weights = softmax_weights(q, k), dense_hedgehog(core, q, k, None, (4, 5))
    expected = (p * p.log() - p * weights.log()).sum(-1).mean().item()
    assert compare(core, q, k, (4, 5))[0] == pytest.approx(expected, abs=1e-10)


def test_rank_correlation_is_of_order_alone():
    x = torch.tensor([[0.1, 3.0, 2.0], [5.0, 4.0, 6.0]])
    assert rank_correlation(x, x.exp()) == pytest.approx(1)
    assert rank_correlation(x, -x) == pytest.approx(-1)
    y = torch.tensor([[0.0, 1.0, 2.0], [5.0, 4.0, 6.0]])
    assert rank_correlation(x, y) == pytest.approx((0.5 + 1) / 2)


def test_tool(tmp_path):
    tool = ROOT / "projects/hedgehog_distillation/distill.py"
    lines = Run(tool, ["--steps", 2], tmp_path).succeeded().out.splitlines()
    expected = run_experiment(steps=2)
    found = [tuple(map(float, re.findall(r"-?\d\.\d\d", line))) for line in lines]
    assert found == [tuple(round(x, 2) for x in row) for row in expected]
    assert lines[1].startswith("after 2 steps: ")


def test_the_example_of_the_readme():
    printed, expected = run_readme_example(ROOT / "projects/hedgehog_distillation")
    losses, shown = (
        [float(number) for number in re.findall(r"\d+\.\d+", text)]
        for text in (printed, expected)
    )
    assert losses[1] < losses[0]
    assert losses == pytest.approx(shown, abs=0.02)
