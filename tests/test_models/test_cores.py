"""Every attention core against its twin, and tests that all cores share."""

import pytest
import torch

from helpers.core_cases import (
    GRIDS,
    HEAD_DIM,
    HEADS,
    build_shaken,
    draw,
    draw_input,
    gain_of,
)
from helpers.core_twins import TWINS
from ravlt.errors import RAVLTError
from ravlt.models.attention import CORES, build_core


def test_every_core_has_a_twin():
    assert TWINS.keys() == CORES.keys()


@pytest.mark.parametrize("hw", GRIDS, ids=lambda hw: f"{hw[0]}x{hw[1]}")
@pytest.mark.parametrize("name", CORES)
def test_values_and_gradients_equal_the_twin(name, hw):
    core = build_shaken(name)
    inputs = draw(hw)
    q, k, v = inputs
    x = draw_input(core, hw)
    expected = TWINS[name](core, q, k, v, hw, *x) @ v * gain_of(core)
    got = core(q, k, v, hw, *x)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-10)
    weights = torch.randn_like(got)
    inputs += [*x, *core.parameters()]
    grads = torch.autograd.grad((got * weights).sum(), inputs)
    expected_grads = torch.autograd.grad((expected * weights).sum(), inputs)
    for got_grad, expected_grad in zip(grads, expected_grads, strict=True):
        torch.testing.assert_close(got_grad, expected_grad, rtol=0, atol=1e-10)


@pytest.mark.parametrize("hw", GRIDS, ids=lambda hw: f"{hw[0]}x{hw[1]}")
@pytest.mark.parametrize("name", CORES)
def test_own_dense_form(name, hw):
    core = build_shaken(name)
    q, k, v = draw(hw)
    x = draw_input(core, hw)
    dense = core.dense(q, k, v, hw, *x)
    expected = TWINS[name](core, q, k, v, hw, *x)
    torch.testing.assert_close(dense, expected, rtol=0, atol=1e-10)
    if core.nonneg:
        assert dense.min() >= 0


@pytest.mark.parametrize("hw", GRIDS, ids=lambda hw: f"{hw[0]}x{hw[1]}")
@pytest.mark.parametrize("name", CORES)
def test_rows_sum_to_one(name, hw):
    """Queries and keys are positive, so that no feature map sends them to zero."""
    core = build_shaken(name)
    q, k, v = draw(hw)
    q, k = q.detach().abs() + 0.1, k.detach().abs() + 0.1
    sums = core.dense(q, k, v, hw, *draw_input(core, hw)).sum(-1)
    ones = torch.ones_like(sums)
    if core.row_stochastic:
        torch.testing.assert_close(sums, ones, rtol=0, atol=1e-4)
        constant = torch.full_like(v, 3.0)
        torch.testing.assert_close(
            core(q, k, constant, hw), constant, rtol=0, atol=1e-3
        )
    elif hw == (7, 9):
        assert (sums - ones).abs().max() > 0.05


OPTIONS = [
    ("cosformer", dict(layout="raster")),
    ("diag", dict(activation="softmax")),
    ("focused", dict(power=3.0)),
    ("gla", dict(scan="cross4")),
]


@pytest.mark.parametrize(("name", "options"), OPTIONS, ids=str)
@pytest.mark.parametrize("hw", [(7, 9), (9, 17)], ids=str)
def test_options_equal_the_twin(name, options, hw):
    core = build_shaken(name, **options)
    q, k, v = draw(hw)
    inputs = (q, k, v, hw, *draw_input(core, hw))
    expected = TWINS[name](core, *inputs)
    torch.testing.assert_close(core.dense(*inputs), expected, rtol=0, atol=1e-10)
    expected = expected @ v * gain_of(core)
    torch.testing.assert_close(core(*inputs), expected, rtol=0, atol=1e-10)


EXTREMES = {
    "zero": lambda x: torch.zeros_like(x),
    "negative": lambda x: -x.abs() - 0.1,
    "large": lambda x: x * 1e4,
    "constant": lambda x: torch.ones_like(x),
}


# Values beyond the range of float16: gradients of 1 / eps = 1e8; outputs of RALA, whose
# rotated numerator is far larger than its denominator; gradients of softmax.
BEYOND_FLOAT16 = {
    ("norm", "zero"),
    ("chela", "zero"),
    ("rala", "large"),
    ("softmax", "large"),
}
EXTREME_CASES = [
    (name, extreme, dtype)
    for name in CORES
    for extreme in EXTREMES
    for dtype in (None, torch.bfloat16, torch.float16)
    if dtype != torch.float16 or (name, extreme) not in BEYOND_FLOAT16
]


@pytest.mark.parametrize(("name", "extreme", "dtype"), EXTREME_CASES, ids=str)
def test_extreme_inputs_stay_finite(name, extreme, dtype):
    """Outputs and gradients stay finite in float32 and under autocast."""
    core = build_core(name, HEADS * HEAD_DIM, HEADS)
    x = draw_input(core, (9, 10))
    q, k, v, *x = (t.detach().float() for t in (*draw((9, 10)), *x))
    change = EXTREMES[extreme]
    inputs = [change(q), change(k), v if extreme == "large" else change(v)]
    inputs += map(change, x)
    if dtype:
        inputs = [t.to(dtype) for t in inputs]
    for t in inputs:
        t.requires_grad_()
    with torch.autocast("cpu", dtype=dtype or torch.bfloat16, enabled=bool(dtype)):
        y = core(*inputs[:3], (9, 10), *inputs[3:])
    assert y.isfinite().all()
    y.float().sum().backward()
    for t in (*inputs, *core.parameters()):
        assert t.grad is None or t.grad.isfinite().all()


COUNTS = {
    "focused": lambda c, d, h: c,
    "fixation": lambda c, d, h: 2 * (3 * d**2 + d),
    "hedgehog": lambda c, d, h: 2 * h * (d**2 + d),
    "gla": lambda c, d, h: 16 * c + 17 * 2 * c + d,
    "chela": lambda c, d, h: 4 * c + (13**2 + 3**2) * c + 4 * c,
}


@pytest.mark.parametrize("name", CORES)
def test_parameters(name):
    """Only the cores in COUNTS add parameters to those of every checkpoint."""
    core = build_core(name, 96, 4)
    count = COUNTS.get(name, lambda c, d, h: 0)(96, 24, 4)
    assert sum(p.numel() for p in core.parameters()) == count


def test_gates_of_four_directions():
    core = CORES["gla"](96, 4, scan="cross4")
    assert sum(p.numel() for p in core.parameters()) == 16 * 96 + 17 * 4 * 96 + 24


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("cosformer", dict(layout="spiral")),
        ("diag", dict(activation="gelu")),
        ("hedgehog", dict(normalisation="none")),
        ("gla", dict(scan="spiral")),
    ],
    ids=str,
)
def test_unknown_options(name, options):
    with pytest.raises(RAVLTError, match="is unknown; use one of"):
        CORES[name](16, 2, **options)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", CORES)
def test_half_precision_is_only_the_rounding_of_inputs_and_output(name, dtype):
    core = build_core(name, HEADS * HEAD_DIM, HEADS)
    tensors = (*draw((7, 9)), *draw_input(core, (7, 9)))
    q, k, v, *x = (t.detach().to(dtype) for t in tensors)
    with torch.autocast("cpu", dtype=dtype):
        got = core(q, k, v, (7, 9), *x)
    assert got.dtype == dtype
    q, k, v, *x = (t.double() for t in (q, k, v, *x))
    exact = core(q, k, v, (7, 9), *x)
    eps = torch.finfo(dtype).eps
    # Softmax also rounds the rotated queries and keys, as the fused kernel needs it.
    slack = 8 if name == "softmax" else 1
    torch.testing.assert_close(got.double(), exact, rtol=slack * eps, atol=slack * eps)


def test_unknown_name():
    with pytest.raises(RAVLTError, match="unknown attention 'cosine'.*'rala'"):
        build_core("cosine", 16, 2)
