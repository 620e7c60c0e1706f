"""Attention cores in float64 against twins written from the specification alone."""

import math

import pytest
import torch
from torch import Tensor

from ravlt.errors import RAVLTError
from ravlt.models.attention import CORES, build_core
from ravlt.models.attention.cores.base import elu1
from ravlt.models.attention.cores.linear import LinearCore
from ravlt.models.attention.cores.rala import RALACore

GRIDS = [(7, 9), (1, 5), (6, 1), (1, 1)]
HEADS, HEAD_DIM = 2, 8


def draw(hw: tuple[int, int], heads: int = HEADS, d: int = HEAD_DIM) -> list[Tensor]:
    torch.manual_seed(hw[0] * 100 + hw[1])
    return [
        torch.randn(2, heads, hw[0] * hw[1], d, dtype=torch.float64).requires_grad_()
        for _ in range(3)
    ]


def rotation_matrix(row: int, col: int, d: int) -> Tensor:
    """The block-diagonal R_n of one token, built pair by pair."""
    out = torch.zeros(d, d, dtype=torch.float64)
    count = d // 4
    for pair in range(d // 2):
        m = pair % count
        theta = 10000.0 ** (-m / (count - 1)) if count > 1 else 1.0
        angle = theta * (row if pair < count else col)
        i = 2 * pair
        out[i, i] = out[i + 1, i + 1] = math.cos(angle)
        out[i, i + 1], out[i + 1, i] = -math.sin(angle), math.sin(angle)
    return out


def rotations(hw: tuple[int, int], d: int) -> Tensor:
    return torch.stack(
        [rotation_matrix(n // hw[1], n % hw[1], d) for n in range(hw[0] * hw[1])]
    )


def turn(x: Tensor, hw: tuple[int, int]) -> Tensor:
    return torch.einsum("nij,bhnj->bhni", rotations(hw, x.shape[-1]), x)


def phi(x: Tensor) -> Tensor:
    return torch.where(x > 0, x + 1, x.exp())


def dense_rala(q: Tensor, k: Tensor, hw, alpha_on=True, rope=True) -> Tensor:
    """A_ij = alpha_j q_i R_i^T R_j k_j / (sum_l alpha_l <q_i, k_l> + N eps)."""
    n, d = q.shape[-2:]
    q, k = phi(q), phi(k)
    g = q.mean(-2)
    logits = torch.einsum("bhd,bhnd->bhn", g, k) / math.sqrt(d)
    alpha = n * logits.softmax(-1) if alpha_on else torch.ones_like(logits)
    scores = torch.einsum("bhid,bhjd->bhij", q, k) * alpha[..., None, :]
    denominator = scores.sum(-1, keepdim=True) + n * 1e-6
    if rope:
        rotated = torch.einsum("bhid,bhjd->bhij", turn(q, hw), turn(k, hw))
        scores = rotated * alpha[..., None, :]
    return scores / denominator


def dense_softmax(q: Tensor, k: Tensor, hw) -> Tensor:
    scores = torch.einsum("bhid,bhjd->bhij", turn(q, hw), turn(k, hw))
    return (scores / math.sqrt(q.shape[-1])).softmax(-1)


TWINS = {
    "rala": dense_rala,
    "linear": lambda q, k, hw: dense_rala(q, k, hw, alpha_on=False, rope=False),
    "softmax": dense_softmax,
}


def test_every_core_has_a_twin():
    assert TWINS.keys() == CORES.keys()


@pytest.mark.parametrize("hw", GRIDS, ids=lambda hw: f"{hw[0]}x{hw[1]}")
@pytest.mark.parametrize("name", CORES)
def test_values_and_gradients_equal_the_twin(name, hw):
    core = build_core(name, HEADS * HEAD_DIM, HEADS)
    inputs = draw(hw)
    q, k, v = inputs
    expected = TWINS[name](q, k, hw) @ v
    got = core(q, k, v, hw)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-10)
    weights = torch.randn_like(got)
    grads = torch.autograd.grad((got * weights).sum(), inputs)
    expected_grads = torch.autograd.grad((expected * weights).sum(), inputs)
    for got_grad, expected_grad in zip(grads, expected_grads, strict=True):
        torch.testing.assert_close(got_grad, expected_grad, rtol=0, atol=1e-10)


@pytest.mark.parametrize("hw", GRIDS, ids=lambda hw: f"{hw[0]}x{hw[1]}")
@pytest.mark.parametrize("name", CORES)
def test_own_dense_form(name, hw):
    core = build_core(name, HEADS * HEAD_DIM, HEADS)
    q, k, v = draw(hw)
    dense = core.dense(q, k, v, hw)
    torch.testing.assert_close(dense, TWINS[name](q, k, hw), rtol=0, atol=1e-10)
    if core.row_stochastic:
        ones = torch.ones_like(dense[..., 0])
        torch.testing.assert_close(dense.sum(-1), ones, rtol=0, atol=1e-5)
    if core.nonneg:
        assert dense.min() >= 0


def test_rala_with_rope_is_neither_stochastic_nor_positive():
    core = build_core("rala", HEADS * HEAD_DIM, HEADS)
    q, k, v = draw((7, 9))
    dense = core.dense(q, k, v, (7, 9))
    assert not core.row_stochastic
    assert not core.nonneg
    assert (dense.sum(-1) - 1).abs().max() > 0.05
    assert dense.min() < 0


def test_the_released_order_of_operations():
    """N, N^-1/2 and the mean as the reference multiplies them out."""
    hw, n, d = (5, 6), 30, HEAD_DIM
    q, k, v = (t.detach() for t in draw(hw))
    pq, pk = phi(q), phi(k)
    g = pq.mean(-2, keepdim=True)
    alpha = n * (d**-0.5 * g @ pk.mT).softmax(-1).mT
    assert torch.allclose(alpha.sum(-2), torch.tensor(float(n), dtype=alpha.dtype))
    weighted = alpha * pk
    z = 1 / (pq @ weighted.mean(-2, keepdim=True).mT + 1e-6)
    buffer = (turn(weighted, hw).mT * n**-0.5) @ (v * n**-0.5)
    expected = turn(pq, hw) @ buffer * z
    got = build_core("rala", HEADS * d, HEADS)(q, k, v, hw)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)


def test_token_weights_sum_to_one():
    q, k, _ = draw((7, 9))
    weights = RALACore(16, 2).token_weights(phi(q).mean(-2, keepdim=True), phi(k))
    torch.testing.assert_close(weights.sum(-2), torch.ones(2, 2, 1).double())
    assert weights.std() > 1e-4
    assert LinearCore(16, 2).token_weights(q, k) * 63 == pytest.approx(1)


def test_linear_is_rala_without_the_weights():
    q, k, v = draw((4, 5))
    rala = RALACore(16, 2)
    rala.token_weights = lambda q_mean, k: 1 / k.shape[-2]
    linear = LinearCore(16, 2, rope=True)
    torch.testing.assert_close(rala(q, k, v, (4, 5)), linear(q, k, v, (4, 5)))


@pytest.mark.parametrize(
    "core", [RALACore(16, 2, rope=False), LinearCore(16, 2)], ids=["rala", "linear"]
)
def test_without_rope_tokens_may_be_shuffled(core):
    q, k, v = draw((4, 5))
    order = torch.randperm(20, generator=torch.Generator().manual_seed(1))
    shuffled = core(q[:, :, order], k[:, :, order], v[:, :, order], (4, 5))
    torch.testing.assert_close(shuffled, core(q, k, v, (4, 5))[:, :, order])
    dense = core.dense(q, k, v, (4, 5))
    torch.testing.assert_close(
        dense.sum(-1), torch.ones_like(dense[..., 0]), rtol=0, atol=1e-5
    )


def test_rank_of_the_linear_map_is_bounded_by_the_head():
    q, k, v = draw((7, 9))
    for name in ("rala", "linear"):
        dense = build_core(name, 16, 2).dense(q, k, v, (7, 9))
        assert torch.linalg.matrix_rank(dense).max() <= HEAD_DIM
    softmax = build_core("softmax", 16, 2).dense(q, k, v, (7, 9))
    assert torch.linalg.matrix_rank(softmax).min() > HEAD_DIM


def test_feature_map():
    x = torch.tensor([-200.0, -80.0, -17.5, -1.0, 0.0, 2.0], requires_grad=True)
    y = elu1(x)
    expected = [0.0, math.exp(-80), math.exp(-17.5), math.exp(-1), 1.0, 3.0]
    assert y.tolist() == pytest.approx(expected, rel=1e-6, abs=1e-44)
    assert y[1] > 0  # F.elu(x) + 1 is zero there
    y.sum().backward()
    expected = [0.0, math.exp(-80), math.exp(-17.5), math.exp(-1), 1.0, 1.0]
    assert x.grad.tolist() == pytest.approx(expected, rel=1e-6, abs=1e-44)


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
