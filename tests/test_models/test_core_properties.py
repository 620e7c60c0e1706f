"""Properties of single attention cores."""

import math

import pytest
import torch
from torch import Tensor

from helpers.core_cases import HEAD_DIM, HEADS, build_shaken, draw
from helpers.core_twins import phi, turn
from ravlt.errors import RAVLTError
from ravlt.models.attention import CORES, LinearCore, RALACore, build_core
from ravlt.ops.elu1 import elu1
from ravlt.ops.rala import linear_attention_terms


@pytest.mark.parametrize("name", ["focused", "norm", "fixation", "hedgehog"])
def test_without_positions_tokens_may_be_shuffled(name):
    core = build_shaken(name)
    q, k, v = draw((4, 5))
    order = torch.randperm(20, generator=torch.Generator().manual_seed(1))
    shuffled = core(q[:, :, order], k[:, :, order], v[:, :, order], (4, 5))
    torch.testing.assert_close(shuffled, core(q, k, v, (4, 5))[:, :, order])


@pytest.mark.parametrize("name", ["cosformer", "vicinity"])
def test_weights_depend_on_distances_only(name):
    """For constant queries and keys, up to the normalisation of each row."""
    hw = (6, 7)
    core = build_core(name, HEADS * HEAD_DIM, HEADS)
    q = torch.ones(1, HEADS, 42, HEAD_DIM, dtype=torch.float64)
    dense = core.dense(q, q, q, hw)[0, 0].view(*hw, *hw)
    for row, col in ((1, 2), (4, 3)):
        here = dense[row, col] / dense[row, col, row, col]
        there = dense[2, 3] / dense[2, 3, 2, 3]
        assert here[row - 1, col + 2] == pytest.approx(there[1, 5].item(), abs=1e-12)
    assert dense[2, 3, 2, 3] == dense[2, 3].max()


@pytest.mark.parametrize("name", ["cosformer", "vicinity", "diag", "focused"])
def test_a_transposed_image_gives_the_transposed_result(name):
    core = build_shaken(name)
    q, k, v = (t.detach() for t in draw((9, 10)))

    def turned(x: Tensor, hw: tuple[int, int]) -> Tensor:
        return x.unflatten(2, hw).transpose(2, 3).flatten(2, 3)

    y = core(*(turned(t, (9, 10)) for t in (q, k, v)), (10, 9))
    torch.testing.assert_close(turned(y, (10, 9)), core(q, k, v, (9, 10)))


def test_cosformer_on_a_row_is_the_paper():
    q, k, v = draw((1, 9))
    product = build_shaken("cosformer")(q, k, v, (1, 9))
    raster = build_shaken("cosformer", layout="raster")(q, k, v, (1, 9))
    torch.testing.assert_close(product, raster)


def test_focusing_keeps_norms_and_sharpens():
    core = build_shaken("focused")
    q, k, v = draw((4, 5))
    core.power = 1.0
    plain, _ = core.features(q, k, v, (4, 5))
    core.power = 3.0
    sharp, _ = core.features(q, k, v, (4, 5))
    torch.testing.assert_close(plain.square().sum((1, 3)), sharp.square().sum((1, 3)))
    assert (sharp.amax((1, 3)) > plain.amax((1, 3))).all()


def test_norm_attention_has_unit_rows():
    q, k, v = draw((4, 5))
    y = build_shaken("norm")(q * 1e3, k, v, (4, 5))
    ones = torch.ones(2, 20, dtype=torch.float64)
    torch.testing.assert_close(y.square().mean((1, 3)), ones, rtol=0, atol=1e-6)


def test_blocks_see_nothing_else():
    q, k, v = (t.detach() for t in draw((9, 10)))
    core = build_shaken("diag")
    before = core(q, k, v, (9, 10)).unflatten(2, (9, 10))
    v = v.unflatten(2, (9, 10)).clone()
    v[:, :, :8, :8] += 1
    after = core(q, k, v.flatten(2, 3), (9, 10)).unflatten(2, (9, 10))
    assert not torch.equal(before[:, :, :8, :8], after[:, :, :8, :8])
    assert torch.equal(before[:, :, 8:], after[:, :, 8:])
    assert torch.equal(before[:, :, :, 8:], after[:, :, :, 8:])


def test_fixation_begins_as_plain_linear_attention():
    """Gates that are equal for all tokens cancel."""
    q, k, v = draw((4, 5))
    core = CORES["fixation"](HEADS * HEAD_DIM, HEADS).double()
    for gate in (core.gate_q, core.gate_k):
        gate.weight.data.zero_()
    offset = HEAD_DIM**-0.5
    scores = (q.relu() + offset) @ (k.relu() + offset).mT
    expected = scores / scores.sum(-1, keepdim=True) @ v
    torch.testing.assert_close(core(q, k, v, (4, 5)), expected, rtol=1e-4, atol=1e-5)


def test_hedgehog_is_a_ratio_of_exponentials_however_large():
    q, k, v = draw((4, 5))
    core = CORES["hedgehog"](HEADS * HEAD_DIM, HEADS)
    q, k, v = (x.detach().float() for x in (q * 60, k * 60, v))
    dense = core.dense(q, k, v, (4, 5))
    assert dense.isfinite().all()
    wide = CORES["hedgehog"](HEADS * HEAD_DIM, HEADS).double()
    expected = wide.dense(q.double(), k.double(), v.double(), (4, 5))
    torch.testing.assert_close(dense.double(), expected, rtol=0, atol=1e-3)


@pytest.mark.parametrize("normalisation", ["softmax", "softmax_half"])
def test_hedgehog_of_released_variants(normalisation):
    q, k, v = draw((4, 5))
    core = build_shaken("hedgehog", normalisation=normalisation)

    def features(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        y = x @ weight.mT + bias
        if normalisation == "softmax_half":
            return torch.cat((y.softmax(-1), (-y).softmax(-1)), -1)
        both = torch.cat((y.exp(), (-y).exp()), -1)
        return both / both.sum(-1, keepdim=True)

    scores = features(q, core.weight_q, core.bias_q)
    scores = scores @ features(k, core.weight_k, core.bias_k).mT
    expected = scores / scores.sum(-1, keepdim=True) @ v
    torch.testing.assert_close(core(q, k, v, (4, 5)), expected)


def test_the_legacy_clamp_of_vicinity():
    """Few tokens of unit scale are hardly clamped; many are no longer normalised."""
    q, k, v = draw((4, 5))
    legacy = build_shaken("vicinity", legacy_clamp=True)
    exact = build_shaken("vicinity")
    q, k, v = (x.detach().abs() + 1 for x in (q, k, v))
    torch.testing.assert_close(
        legacy(q, k, v, (4, 5)), exact(q, k, v, (4, 5)), rtol=1e-3, atol=1e-3
    )
    q, k, v = (x.repeat(1, 1, 500, 1) for x in (q, k, v))
    got = legacy(q, k, v, (100, 100))
    ratio = got / exact(q, k, v, (100, 100))
    assert (ratio - 1).abs().min() > 0.2

    def clamp(x: Tensor) -> Tensor:
        return x.sign() * x.abs().clamp(1e-4, 1e4)

    def features(x: Tensor) -> Tensor:
        n = torch.arange(10_000).double()[:, None]
        rows, cols = ((n // 100) / 100, (n % 100) / 100)
        angles = (math.pi / 2 * part for part in (rows, cols))
        return torch.cat([x * f(a) for a in angles for f in (torch.cos, torch.sin)], -1)

    q_f, k_f = features(q), features(k)
    sums = q_f @ k_f.sum(-2, keepdim=True).mT + 1e-4
    expected = clamp(clamp(q_f @ clamp(k_f.mT @ v)) * clamp(1 / sums))
    torch.testing.assert_close(got, expected)
    with pytest.raises(RAVLTError, match="legacy_clamp=True is not a linear map"):
        legacy.dense(q, k, v, (100, 100))


def test_rala_with_rope_is_neither_stochastic_nor_positive():
    core = build_core("rala", HEADS * HEAD_DIM, HEADS)
    q, k, v = draw((7, 9))
    dense = core.dense(q, k, v, (7, 9))
    assert not core.row_stochastic
    assert not core.nonneg
    assert (dense.sum(-1) - 1).abs().max() > 0.05
    assert dense.min() < 0


def test_the_released_order_of_operations():
    """The reference multiplies by N and N^-1/2 and takes the mean in this order."""
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


@pytest.mark.parametrize("reweight", [False, True])
def test_token_weights_sum_to_one(reweight):
    q, k, _ = draw((7, 9))
    terms = linear_attention_terms(q, k, (7, 9), rope=False, reweight=reweight)
    weights = terms[1] / phi(k)
    torch.testing.assert_close(weights.sum(-2), torch.ones(2, 2, 8).double())
    assert (weights.std().item() > 1e-4) is reweight


def test_rala_of_equal_keys_is_linear_attention():
    """The global query scores equal keys equally, so all token weights are 1 / N."""
    q, k, v = draw((4, 5))
    k = k[:, :, :1].expand_as(k)
    rala, linear = RALACore(16, 2), LinearCore(16, 2, rope=True)
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
