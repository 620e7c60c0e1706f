"""Every attention core against its twin, and through one plan of tests."""

import pytest
import torch
from core_cases import GRIDS, HEAD_DIM, HEADS, build_shaken, draw
from core_twins import TWINS

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
    expected = TWINS[name](core, q, k, v, hw) @ v
    got = core(q, k, v, hw)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-10)
    weights = torch.randn_like(got)
    inputs += core.parameters()
    grads = torch.autograd.grad((got * weights).sum(), inputs)
    expected_grads = torch.autograd.grad((expected * weights).sum(), inputs)
    for got_grad, expected_grad in zip(grads, expected_grads, strict=True):
        torch.testing.assert_close(got_grad, expected_grad, rtol=0, atol=1e-10)


@pytest.mark.parametrize("hw", GRIDS, ids=lambda hw: f"{hw[0]}x{hw[1]}")
@pytest.mark.parametrize("name", CORES)
def test_own_dense_form(name, hw):
    core = build_shaken(name)
    q, k, v = draw(hw)
    dense = core.dense(q, k, v, hw)
    expected = TWINS[name](core, q, k, v, hw)
    torch.testing.assert_close(dense, expected, rtol=0, atol=1e-10)
    if core.nonneg:
        assert dense.min() >= 0


@pytest.mark.parametrize("hw", GRIDS, ids=lambda hw: f"{hw[0]}x{hw[1]}")
@pytest.mark.parametrize("name", CORES)
def test_rows_sum_to_one(name, hw):
    """Of positive queries and keys, which no feature map silences."""
    core = build_shaken(name)
    q, k, v = draw(hw)
    q, k = q.detach().abs() + 0.1, k.detach().abs() + 0.1
    sums = core.dense(q, k, v, hw).sum(-1)
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
]


@pytest.mark.parametrize(("name", "options"), OPTIONS, ids=str)
@pytest.mark.parametrize("hw", [(7, 9), (9, 17)], ids=str)
def test_options_equal_the_twin(name, options, hw):
    core = build_shaken(name, **options)
    q, k, v = draw(hw)
    expected = TWINS[name](core, q, k, v, hw)
    torch.testing.assert_close(core.dense(q, k, v, hw), expected, rtol=0, atol=1e-10)
    torch.testing.assert_close(core(q, k, v, hw), expected @ v, rtol=0, atol=1e-10)


EXTREMES = {
    "zero": lambda x: torch.zeros_like(x),
    "negative": lambda x: -x.abs() - 0.1,
    "large": lambda x: x * 1e4,
    "constant": lambda x: torch.ones_like(x),
}


# Numbers that float16 does not have: a gradient of 1 / eps = 1e8; outputs of RALA, its
# rotated numerator far larger than its denominator; gradients of softmax.
BEYOND_FLOAT16 = {("norm", "zero"), ("rala", "large"), ("softmax", "large")}
EXTREME_CASES = [
    (name, extreme, dtype)
    for name in CORES
    for extreme in EXTREMES
    for dtype in (None, torch.bfloat16, torch.float16)
    if dtype != torch.float16 or (name, extreme) not in BEYOND_FLOAT16
]


@pytest.mark.parametrize(("name", "extreme", "dtype"), EXTREME_CASES, ids=str)
def test_extreme_inputs_stay_finite(name, extreme, dtype):
    """Outputs and gradients, in float32 and under autocast."""
    core = build_core(name, HEADS * HEAD_DIM, HEADS)
    q, k, v = (t.detach().float() for t in draw((9, 10)))
    change = EXTREMES[extreme]
    inputs = [change(q), change(k), v if extreme == "large" else change(v)]
    if dtype:
        inputs = [t.to(dtype) for t in inputs]
    for t in inputs:
        t.requires_grad_()
    with torch.autocast("cpu", dtype=dtype or torch.bfloat16, enabled=bool(dtype)):
        y = core(*inputs, (9, 10))
    assert y.isfinite().all()
    y.float().sum().backward()
    for t in (*inputs, *core.parameters()):
        assert t.grad is None or t.grad.isfinite().all()


COUNTS = {
    "focused": lambda c, d, h: c,
    "fixation": lambda c, d, h: 2 * (3 * d**2 + d),
    "hedgehog": lambda c, d, h: 2 * h * (d**2 + d),
}


@pytest.mark.parametrize("name", CORES)
def test_parameters(name):
    """Only these add any to what every checkpoint holds."""
    core = build_core(name, 96, 4)
    count = COUNTS.get(name, lambda c, d, h: 0)(96, 24, 4)
    assert sum(p.numel() for p in core.parameters()) == count


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("cosformer", dict(layout="spiral")),
        ("diag", dict(activation="gelu")),
        ("hedgehog", dict(normalisation="none")),
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
    q, k, v = (t.detach().to(dtype) for t in draw((7, 9)))
    with torch.autocast("cpu", dtype=dtype):
        got = core(q, k, v, (7, 9))
    assert got.dtype == dtype
    exact = core(q.double(), k.double(), v.double(), (7, 9))
    eps = torch.finfo(dtype).eps
    # Softmax also rounds the rotated queries and keys, for the fused kernel.
    slack = 8 if name == "softmax" else 1
    torch.testing.assert_close(got.double(), exact, rtol=slack * eps, atol=slack * eps)


def test_unknown_name():
    with pytest.raises(RAVLTError, match="unknown attention 'cosine'.*'rala'"):
        build_core("cosine", 16, 2)
