"""Properties of the cores that read the layer's input: GLA and CHELA."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from helpers.backbones import build, error, images, randomize
from helpers.core_cases import HEAD_DIM, HEADS, build_shaken, draw, draw_input
from helpers.core_twins import directions, gates, rms, short_long
from ravlt.inference.fold import fold_attention
from ravlt.inference.tiled import Workspace, gated_attention_tiles
from ravlt.models import GatedAttention
from ravlt.models.attention import CORES, build_core
from ravlt.models.attention.gla import SCANS
from ravlt.models.layers import ChannelLayerNorm, DepthwiseConv

EPS = 1e-5


def inputs_for(core, hw: tuple[int, int]) -> tuple:
    q, k, v = (t.detach() for t in draw(hw))
    (x,) = draw_input(core, hw)
    return q, k, v, hw, x.detach()


def unit(y: Tensor) -> Tensor:
    """Normalise each head by its root mean square."""
    return y / (y.square().mean(-1, keepdim=True) + EPS).sqrt()


@pytest.mark.parametrize("hw", [(9, 17), (5, 16), (16, 1), (1, 33)], ids=str)
@pytest.mark.parametrize("scan", SCANS)
def test_gla_is_its_recurrence(scan, hw):
    """The recurrence runs token by token with a d x d state.

    The grids fill chunks of 16 tokens fully or partly.
    """
    core = build_shaken("gla", scan=scan)
    q, k, v, _, x = inputs_for(core, hw)
    orders, y = directions(scan, hw), torch.zeros_like(v)
    for order, a in zip(orders, gates(core, x), strict=True):
        state = v.new_zeros(2, HEADS, HEAD_DIM, HEAD_DIM)
        for n in order:
            state = a[:, :, n, :, None] * state + k[:, :, n, :, None] * v[:, :, n, None]
            y[:, :, n] += torch.einsum("bhf,bhfe->bhe", q[:, :, n], state)
    y = unit(y / len(orders) * HEAD_DIM**-0.5) * core.gain
    torch.testing.assert_close(core(q, k, v, hw, x), y, rtol=0, atol=1e-10)


@pytest.mark.parametrize("hw", [(7, 9), (1, 5)], ids=str)
@pytest.mark.parametrize(("bias", "kept"), [(1e6, 1.0), (-1e6, 0.0)])
@pytest.mark.parametrize("scan", SCANS)
def test_open_and_closed_gates(scan, bias, kept, hw):
    """Open gates give linear attention whose diagonal counts twice.

    Closed gates give the diagonal alone. Neither has a denominator.
    """
    core = CORES["gla"](HEADS * HEAD_DIM, HEADS, scan=scan).double()
    nn.init.constant_(core.gate_up.bias, bias)
    q, k, v, _, x = inputs_for(core, hw)
    scores = q @ k.mT * HEAD_DIM**-0.5
    own = torch.diag_embed(scores.diagonal(dim1=-2, dim2=-1))
    scores = kept * (scores + own) / 2 + (1 - kept) * own
    torch.testing.assert_close(core(q, k, v, hw, x), unit(scores @ v))


def test_gla_forgets_half_in_sixteen_tokens():
    """At initialisation, every gate is 0.5^(1 / 16) where logits are 0."""
    core = build_core("gla", HEADS * HEAD_DIM, HEADS)
    hw = (1, 40)
    ones = torch.ones(1, HEADS, 40, HEAD_DIM, dtype=torch.float64)
    x = torch.zeros(1, *hw, HEADS * HEAD_DIM, dtype=torch.float64)
    row = core.dense(ones, ones, ones, hw, x)[0, 0, 20]
    distances = (torch.arange(40) - 20).abs().double()
    expected = 0.5 ** (distances / 16) * torch.where(distances == 0, 2.0, 1.0)
    torch.testing.assert_close(row / row[20] * 2, expected)


def test_gates_far_from_their_beginning_stay_exact():
    """Quotients of exponentials would overflow in float32 at these decays."""
    core = build_shaken("gla").float()
    core.gate_up.weight.data *= 300
    q, k, v, hw, x = inputs_for(core, (9, 17))
    assert gates(core, x).min() < 1e-20
    got = core(q.float(), k.float(), v.float(), hw, x.float())
    exact = copy.deepcopy(core).double()(q, k, v, hw, x)
    assert error(got, exact) < 1e-4


def turned(x: Tensor, hw: tuple[int, int]) -> Tensor:
    return x.unflatten(2, hw).transpose(2, 3).flatten(2, 3)


@pytest.mark.parametrize("scan", SCANS)
def test_four_directions_of_a_transposed_image(scan):
    """'cross4' commutes with transposition if rows and columns exchange their gates.

    'bidir' does not.
    """
    core = build_shaken("gla", scan=scan)
    q, k, v, hw, x = inputs_for(core, (9, 10))
    other = copy.deepcopy(core)
    if scan == "cross4":
        for p in (other.gate_up.weight, other.gate_up.bias):
            p.data = p.data.roll(2 * core.dim, 0)
    heads = (turned(t, hw) for t in (q, k, v))
    got = turned(other(*heads, hw[::-1], x.transpose(1, 2)), hw[::-1])
    expected = core(q, k, v, hw, x)
    if scan == "cross4":
        torch.testing.assert_close(got, expected)
    else:
        assert error(got, expected) > 0.1


@pytest.mark.parametrize("hw", [(20, 17), (1, 5), (1, 1)], ids=str)
def test_merged_convolution(hw):
    core = build_shaken("chela").eval()
    inputs = inputs_for(core, hw)
    x = inputs[-1]
    expected = [core.conv(x), core(*inputs), core.dense(*inputs)]
    torch.testing.assert_close(expected[0], short_long(core.conv, x))
    core.switch_to_deploy()
    assert type(core.conv) is DepthwiseConv
    got = [core.conv(x), core(*inputs), core.dense(*inputs)]
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-10)


def test_merged_kernel():
    """The merged kernel is the long one plus the short one in its centre, each scaled.

    The scales are those of the two batch norms.
    """
    conv = build_shaken("chela").eval().conv
    kernel = 0
    for part, norm in ((conv.long, conv.norm_long), (conv.short, conv.norm_short)):
        scale = norm.weight / (norm.running_var + EPS).sqrt()
        margin = (13 - part.weight.shape[-1]) // 2
        kernel = kernel + F.pad(part.weight, (margin,) * 4) * scale[:, None, None, None]
    torch.testing.assert_close(conv.merge().weight, kernel)
    assert kernel[:, :, 0, 0].abs().min() > 0


def test_training_of_the_two_branches_moves_their_statistics():
    core = build_shaken("chela")
    before = core.conv.norm_long.running_mean.clone()
    core(*inputs_for(core, (7, 9)))
    assert not torch.equal(core.conv.norm_long.running_mean, before)
    core.eval()
    before = core.conv.norm_long.running_mean.clone()
    core(*inputs_for(core, (7, 9)))
    assert torch.equal(core.conv.norm_long.running_mean, before)


def test_chela_without_its_convolution_is_norm_attention():
    core = build_shaken("chela")
    for p in (core.scale_q, core.scale_k, core.shift_q, core.shift_k):
        nn.init.zeros_(p)
    q, k, v, hw, x = inputs_for(core, (7, 9))
    plain = build_core("norm", HEADS * HEAD_DIM, HEADS)
    torch.testing.assert_close(core(q, k, v, hw, x), plain(q, k, v, hw))
    ones = torch.ones(2, 1, 63, 1, dtype=torch.float64)
    torch.testing.assert_close(rms(core(q, k, v, hw, x)), ones)


@pytest.mark.parametrize("name", ["gla", "chela"])
def test_the_layer_hands_over_what_its_projections_get(name):
    """The core receives the normalised input, on whole grids and in tiles.

    After folding, x still includes the scale and shift of the norm.
    """
    layer = randomize(GatedAttention(16, 2, name)).eval()
    norm = randomize(ChannelLayerNorm(16))
    given = []
    layer.core.register_forward_hook(lambda _, args, out: given.append(args[4].clone()))
    x = images(1, 9, 10, 16)
    with torch.no_grad():
        layer(norm(x))
        list(gated_attention_tiles(layer, norm, x, Workspace(4)))
        fold_attention(norm, layer)
        list(gated_attention_tiles(layer, norm, x, Workspace(4)))
        assert len(given) == 3
        for got in given:
            torch.testing.assert_close(got, norm(x))


@pytest.mark.parametrize("requires_grad", [False, True])
def test_frozen_convolutions_merge_frozen(requires_grad):
    model = build(attn_types="chela").requires_grad_(requires_grad).switch_to_deploy()
    for stage in model.layers:
        for block in stage.blocks:
            for parameter in block.attn.core.conv.parameters():
                assert parameter.requires_grad is requires_grad
    assert not any(isinstance(m, nn.BatchNorm2d) for m in model.modules())


@pytest.mark.parametrize("name", ["gla", "chela"])
def test_all_parameters_learn(name):
    model = build(attn_types=name).train()
    sum(y.square().mul(y).sum() for y in model(images(2, 3, 64, 96))).backward()
    for key, parameter in model.named_parameters():
        assert parameter.grad.abs().max() > 0, key
