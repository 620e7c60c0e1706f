"""Ranks of matrices and layers against closed formulas and float64 twins."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from helpers.spectra import draw, spectra
from ravlt.analysis.attention.rank import (
    Call,
    Matrix,
    attention_rows,
    effective_rank,
    kv_spectra,
    layer_ranks,
    numerical_rank,
    output_spectra,
    row_sums,
    singular_values,
    watch,
)
from ravlt.models import RAVLT, GatedAttention
from ravlt.models.attention import build_core

# ------------------------------------------------------------------------ formulas


def with_spectrum(values: Tensor, rows: int, columns: int) -> Tensor:
    """Return a matrix with random singular vectors and the given spectrum."""
    left, right = (
        torch.linalg.qr(draw(n, len(values), seed=n)).Q for n in (rows, columns)
    )
    return left @ values.diag() @ right.T


@pytest.mark.parametrize(("rows", "columns"), [(50, 6), (6, 50), (6, 6)])
def test_singular_values_of_known_spectra(rows, columns):
    values = torch.tensor([3, 1, 0.5, 1e-3, 1e-9, 0], dtype=torch.float64)
    matrices = torch.stack([with_spectrum(values, rows, columns)] * 2)
    matrices[1] *= 7
    expected = torch.stack((values, 7 * values))
    torch.testing.assert_close(
        singular_values(matrices), expected, rtol=1e-10, atol=1e-14
    )


def test_matrices_with_nan_or_inf_have_ranks_of_nan():
    x = draw(3, 4, 4)
    x[0, 1, 2], x[2, 0, 0] = torch.nan, torch.inf
    found = singular_values(x)
    assert found.isnan().all(-1).tolist() == [True, False, True]
    assert effective_rank(found).isnan().tolist() == [True, False, True]
    torch.testing.assert_close(found[1], torch.linalg.svdvals(x[1]))


def test_effective_rank_by_hand():
    def of(*values: float) -> float:
        return effective_rank(torch.tensor(values, dtype=torch.float64)).item()

    assert of(5, 5, 5, 0) == pytest.approx(3)
    assert of(4, 0, 0, 0) == 1
    assert of(0, 0, 0, 0) == 0
    assert of(3, 1) == pytest.approx(4 / 3**0.75)  # (3/4)^(-3/4) (1/4)^(-1/4)
    # 1, 1/2, 1/4 ...: p_i = 2^-i has an entropy of log 4.
    assert of(*(0.5**i for i in range(60))) == pytest.approx(4)


def test_numerical_rank_by_hand():
    values = torch.tensor([[100, 10, 1.5, 0.05], [0, 0, 0, 0], [2, 2, 2, 0]])
    assert numerical_rank(values, 1e-2).tolist() == [3, 0, 3]
    assert numerical_rank(values, 0.1).tolist() == [1, 0, 3]
    assert numerical_rank(values, 1e-4).tolist() == [4, 0, 3]
    low = draw(40, 5, seed=1) @ draw(5, 30, seed=2)
    assert numerical_rank(singular_values(low), 1e-9) == 5


# --------------------------------------------------------------------------- twins

HW = (3, 4)
HEADS, D = 2, 16  # of stage 2 of the arch 'test'


def phi(x: Tensor) -> Tensor:
    return torch.where(x > 0, x + 1, x.exp())


def places() -> tuple[Tensor, Tensor]:
    """Return row and column of every token."""
    tokens = torch.arange(math.prod(HW), dtype=torch.float64)
    return tokens // HW[1], tokens % HW[1]


def turn(x: Tensor) -> Tensor:
    """Rotate (heads, N, d) by rows in its first half, by columns in its second."""
    row, column = places()
    m = torch.arange(D // 4, dtype=torch.float64)
    theta = 10000 ** (-m / (D // 4 - 1))
    angles = torch.cat((row[:, None] * theta, column[:, None] * theta), dim=-1)
    pairs = torch.view_as_complex(x.unflatten(-1, (-1, 2)).contiguous())
    turned = pairs * torch.polar(torch.ones_like(angles), angles)
    return torch.view_as_real(turned).flatten(-2)


@pytest.fixture(scope="module")
def rala() -> tuple[Call, dict[str, Tensor]]:
    """Return the call of a network's second stage in float64, and its twin."""
    torch.manual_seed(0)
    model = RAVLT("test", out_indices=(1,), tile=0).double().eval()
    layer = model.layers[1].blocks[0].attn
    for part in (layer.qkvo, layer.lepe):
        part.weight.data *= 40  # so that alpha is far from 1
        part.bias.data += draw(*part.bias.shape)
    calls = {}
    handle = layer.register_forward_pre_hook(lambda _, x: calls.update(x=x[0]))
    with watch(model, lambda name, call: calls.update({name: call})), torch.no_grad():
        model(draw(1, 3, 8 * HW[0], 8 * HW[1]))
    handle.remove()
    assert set(calls) == {"x", "layers.0.blocks.0.attn", "layers.1.blocks.0.attn"}
    assert not any(m._forward_hooks for m in model.modules())
    with torch.no_grad():
        return calls["layers.1.blocks.0.attn"], twin(layer, calls["x"][0])


def twin(layer: GatedAttention, x: Tensor) -> dict[str, Tensor]:
    """Compute the layer's matrices for one image, head by head, from its weights."""

    def heads(t: Tensor) -> Tensor:
        return t.reshape(-1, HEADS, D).permute(1, 0, 2)

    weight = layer.qkvo.weight[:, :, 0, 0]
    q, k, v, gate = (x.flatten(0, 1) @ weight.T + layer.qkvo.bias).chunk(4, dim=-1)
    image = v.T.reshape(1, -1, *HW)
    lepe = F.conv2d(image, layer.lepe.weight, layer.lepe.bias, 1, 2, 1, HEADS * D)
    q, k, v, gate, lepe = map(heads, (phi(q), phi(k), v, gate, lepe[0].flatten(1).T))
    logits = k @ q.mean(1)[:, :, None] / math.sqrt(D)
    out = dict(gate=gate, lepe=lepe)
    for alpha, weights in (
        (True, logits.softmax(1)),
        (False, 1 / len(x.flatten(0, 1))),
    ):
        share = k * weights
        denominator = (q * share.sum(1, keepdim=True)).sum(-1, keepdim=True) + 1e-6
        out["kv", alpha] = turn(share).transpose(1, 2) @ v
        out["dense", alpha] = turn(q) @ turn(share).transpose(1, 2) / denominator
        out["core", alpha] = out["dense", alpha] @ v
    return out


def assert_equal(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


def test_kv_buffers_equal_the_twin(rala):
    call, expected = rala
    found = kv_spectra(call)
    assert set(found) == {Matrix("kv", True), Matrix("kv", False)}
    for matrix, values in found.items():
        buffers = expected["kv", matrix.alpha]
        assert_equal(values.heads[0], spectra(buffers))
        assert_equal(values.all_heads[0], spectra(torch.block_diag(*buffers)))
    with_alpha, without = (found[Matrix("kv", a)].all_heads for a in (True, False))
    assert (with_alpha / without - 1).abs().max() > 0.1


def test_outputs_equal_the_twin(rala):
    call, expected = rala
    found = output_spectra(call)
    assert len(found) == 8
    for (kind, alpha, lepe, gate), values in found.items():
        assert kind == "output"
        y = expected["core", alpha] + expected["lepe"] * lepe
        y = y * expected["gate"] if gate else y
        assert_equal(values.heads[0], spectra(y))
        assert_equal(values.all_heads[0], spectra(torch.cat(tuple(y), dim=-1)))


def test_rows_equal_the_twin(rala):
    call, expected = rala
    found, sums = attention_rows(call), row_sums(call)
    assert set(found) == set(sums) == {True, False}
    for alpha, rows in found.items():
        weights = expected["dense", alpha]
        assert_equal(rows.sums[0], weights.sum(-1))
        assert_equal(sums[alpha], rows.sums)
        size = weights.abs()
        share = size / size.sum(-1, keepdim=True)
        assert_equal(rows.entropy[0], -(share * share.log()).sum(-1))
    assert (found[True].entropy < math.log(len(weights[0]))).all()


@pytest.mark.parametrize("name", ["linear", "norm", "cosformer"])
def test_buffers_of_other_mechanisms(name):
    q, k, v = (draw(1, HEADS, 12, D, seed=i) for i in range(3))
    features = phi(k)
    if name == "cosformer":
        r, c = (x * math.pi / 2 / n for x, n in zip(places(), HW, strict=True))
        waves = [a * b for a in (r.cos(), r.sin()) for b in (c.cos(), c.sin())]
        features = torch.cat([k.relu() * w[:, None] for w in waves], dim=-1)
    found = build_core(name, HEADS * D, HEADS).kv_buffer(q, k, v, HW)
    # Spectra do not depend on the order of the features.
    expected = torch.einsum("bhnf,bhnd->bhfd", features, v) / 12
    assert found.shape == expected.shape
    assert_equal(spectra(found), spectra(expected))


def test_ranks_under_autocast():
    """Layers compute in half precision, singular values in float64."""
    torch.manual_seed(0)
    model = RAVLT("test")
    ranks = {False: {}, True: {}}
    for enabled in ranks:

        def visit(name: str, call: Call, enabled=enabled) -> None:
            ranks[enabled][name] = layer_ranks(call)

        with watch(model, visit), torch.autocast("cpu", torch.bfloat16, enabled):
            model(draw(2, 3, 64, 96).float())
    assert len(ranks[True]) == 5
    for name, expected in ranks[False].items():
        assert ranks[True][name] == pytest.approx(expected, rel=0.02)


def by_hand(name: str, tokens: tuple[int, int], d: int) -> Call:
    """Return a call on Gaussian queries, keys, values and gate of one head."""
    layer = GatedAttention(d, 1, name)
    q, k, v, gate = (draw(1, 1, math.prod(tokens), d, seed=i) for i in range(4))
    mixed = layer.core(q, k, v, tokens)
    return Call(layer, (q, k, v, tokens), mixed, torch.zeros_like(v), gate)


def test_mechanisms_without_alpha_or_buffer():
    assert kv_spectra(by_hand("softmax", (2, 3), 8)) == {}
    assert row_sums(by_hand("softmax", (2, 3), 8)) == {}
    call = by_hand("linear", (2, 3), 8)
    assert set(kv_spectra(call)) == {Matrix("kv", None)}
    assert {matrix.alpha for matrix in output_spectra(call)} == {None}
    assert row_sums(call)[None].flatten().tolist() == pytest.approx([1] * 6, abs=1e-5)


def test_statements_of_docs_rank_on_gaussian_inputs():
    """The gate raises the rank of the output; alpha does not raise the buffer's."""
    call = by_hand("rala", (14, 14), 64)
    buffers, outputs = kv_spectra(call), output_spectra(call)
    kv = {a: effective_rank(buffers[Matrix("kv", a)].all_heads).item() for a in (1, 0)}
    values = [
        outputs[Matrix("output", True, False, g)].all_heads for g in (False, True)
    ]
    assert kv[1] < kv[0] - 3
    plain, gated = (effective_rank(v).item() for v in values)
    assert plain < 10 < 40 < gated
    plain, gated = (numerical_rank(v, 1e-2).item() for v in values)
    assert plain < 32 < gated == 64
    entropy = {a: rows.entropy.mean() for a, rows in attention_rows(call).items()}
    assert entropy[True] < entropy[False]
