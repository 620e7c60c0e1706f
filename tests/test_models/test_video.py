"""Channels of neighbours in space and time, and attention over either, by loops."""

import pytest
import torch
from core_cases import GRIDS, HEAD_DIM, HEADS, build_shaken, draw
from core_twins import TWINS, copied_in_space
from torch import Tensor

from ravlt.errors import RAVLTError
from ravlt.models.attention.shift import spatial_shift, temporal_shift
from ravlt.models.attention.video import ClipAttention

C = HEADS * HEAD_DIM
grids = pytest.mark.parametrize("hw", GRIDS, ids=lambda hw: f"{hw[0]}x{hw[1]}")


def copied_in_time(x: Tensor) -> Tensor:
    heads, frames, d = x.shape[1:]
    y = x.clone()
    for channel in range(heads * d // 4):
        head, feature = divmod(channel, d)
        step = 1 if channel < heads * d // 8 else -1
        for t in range(frames):
            inside = 0 <= t + step < frames
            y[:, head, t, feature] = x[:, head, t + step, feature] if inside else 0
    return y


@pytest.mark.parametrize("heads", [1, 2, 8])
@grids
def test_spatial_shift_copies_neighbours(hw, heads):
    x = draw(hw, heads, 32 // heads)[0]
    torch.testing.assert_close(
        spatial_shift(x, hw), copied_in_space(x, hw), rtol=0, atol=0
    )


def test_half_of_the_channels_stay_and_no_value_is_made_up():
    x = draw((3, 4), 4, 8)[0].detach()
    y = spatial_shift(x, (3, 4))
    assert torch.equal(y[:, 2:], x[:, 2:])
    assert not (y[:, :2] == x[:, :2]).any()
    inner = y[:, :2].unflatten(2, (3, 4))[:, :, 1, 1:3]
    assert torch.isin(inner, x[:, :2]).all()


@pytest.mark.parametrize("frames", [1, 2, 5])
@pytest.mark.parametrize("heads", [1, 2, 8])
def test_temporal_shift_copies_frames(frames, heads):
    x = draw((1, frames), heads, 32 // heads)[0].detach()
    torch.testing.assert_close(temporal_shift(x), copied_in_time(x), rtol=0, atol=0)


def test_too_few_channels_to_move():
    x = draw((3, 4), 1, 4)[0]
    assert torch.equal(spatial_shift(x, (3, 4)), x)
    assert torch.equal(temporal_shift(x), x)


@grids
def test_the_core_on_shifted_keys_and_values(hw):
    core, plain = build_shaken("fixation", shift=True), build_shaken("fixation")
    plain.load_state_dict(core.state_dict())
    inputs = draw(hw)
    q, k, v = inputs
    moved = (q, copied_in_space(k, hw), copied_in_space(v, hw), hw)
    dense = TWINS["fixation"](core, *moved)
    close = dict(rtol=0, atol=1e-10)
    torch.testing.assert_close(core.dense(q, k, v, hw), dense, **close)
    torch.testing.assert_close(core.values(v, hw), moved[2], **close)
    got, expected = core(q, k, v, hw), dense @ moved[2]
    torch.testing.assert_close(got, expected, **close)
    torch.testing.assert_close(
        core.kv_buffer(q, k, v, hw), plain.kv_buffer(*moved), **close
    )
    weights = torch.randn_like(got)
    inputs += core.parameters()
    grads = torch.autograd.grad((got * weights).sum(), inputs)
    expected_grads = torch.autograd.grad((expected * weights).sum(), inputs)
    for one, other in zip(grads, expected_grads, strict=True):
        torch.testing.assert_close(one, other, **close)


# --------------------------------------------------------------------------- clips

CLIPS = [(3, 3, 4), (1, 2, 3), (4, 1, 1), (2, 1, 5), (2, 6, 1)]


def build(axis: str, shift: bool) -> ClipAttention:
    torch.manual_seed(0)
    layer = ClipAttention(C, HEADS, axis, shift).double()
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return layer


def linear(layer, x: Tensor) -> Tensor:
    return x @ layer.weight[:, :, 0, 0].T + layer.bias


def heads(x: Tensor) -> Tensor:
    """(B, N, C) -> (B, heads, N, d)."""
    return torch.stack(x.split(HEAD_DIM, -1), 1)


def attended(layer: ClipAttention, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Of (B, N, C)."""
    q, k, v = heads(q), heads(k), heads(v)
    y = TWINS["fixation"](layer.core, q, k, v, None) @ v
    return torch.cat(y.unbind(1), -1)


def over_time(layer: ClipAttention, x: Tensor) -> Tensor:
    """Place by place."""
    _, frames, height, width, _ = x.shape
    q, k, v = linear(layer.qkv, x).split(C, -1)
    if layer.shift:
        k, v = (
            torch.stack(
                [
                    torch.cat(
                        copied_in_space(
                            heads(part[:, t].flatten(1, 2)), (height, width)
                        ).unbind(1),
                        -1,
                    ).unflatten(1, (height, width))
                    for t in range(frames)
                ],
                1,
            )
            for part in (k, v)
        )
    rows = [
        torch.stack(
            [
                attended(layer, *(part[:, :, r, c] for part in (q, k, v)))
                for c in range(width)
            ],
            2,
        )
        for r in range(height)
    ]
    return linear(layer.proj, torch.stack(rows, 2))


def over_space(layer: ClipAttention, x: Tensor) -> Tensor:
    """Frame by frame."""
    _, frames, height, width, _ = x.shape
    q, k, v = linear(layer.qkv, x).flatten(2, 3).split(C, -1)
    if layer.shift:
        k, v = (
            torch.stack(
                [
                    torch.cat(copied_in_time(heads(part[:, :, n])).unbind(1), -1)
                    for n in range(height * width)
                ],
                2,
            )
            for part in (k, v)
        )
    y = [attended(layer, q[:, t], k[:, t], v[:, t]) for t in range(frames)]
    return linear(layer.proj, torch.stack(y, 1)).unflatten(2, (height, width))


@pytest.mark.parametrize("shift", [False, True], ids=["plain", "shift"])
@pytest.mark.parametrize("clip", CLIPS, ids=str)
@pytest.mark.parametrize(("axis", "loop"), [("time", over_time), ("space", over_space)])
def test_values_and_gradients_equal_a_loop(axis, loop, clip, shift):
    layer = build(axis, shift)
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2, *clip, C, generator=generator, dtype=torch.float64)
    x.requires_grad_()
    got, expected = layer(x), loop(layer, x)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-10)
    weights = torch.randn_like(got)
    inputs = [x, *layer.parameters()]
    grads = torch.autograd.grad((got * weights).sum(), inputs)
    expected_grads = torch.autograd.grad((expected * weights).sum(), inputs)
    for one, other in zip(grads, expected_grads, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-9)


@pytest.mark.parametrize("axis", ["time", "space"])
def test_only_shifts_reach_along_the_other_axis(axis):
    """A token reaches its own place, and nine with shifts; its frame, and three."""
    x = torch.randn(1, 5, 5, 5, C, dtype=torch.float64)
    changed = x.clone()
    changed[:, 2, 2, 2] += torch.randn(C)
    for shift in (False, True):
        layer = build(axis, shift)
        reached = (layer(changed) - layer(x)).abs().sum(-1)[0] > 1e-12
        if axis == "time":
            places = reached.any(0)
            assert torch.equal(reached, places.expand(5, 5, 5))
            assert places.sum() == (9 if shift else 1)
        else:
            assert reached.any(2).any(1).tolist() == [0, shift, 1, shift, 0]


def test_parameters():
    layer = ClipAttention(96, 4, "time")
    count = sum(p.numel() for p in layer.parameters())
    assert count == 4 * 96**2 + 4 * 96 + 2 * (3 * 24**2 + 24)


def test_unknown_axis():
    with pytest.raises(RAVLTError, match="axis='depth' is unknown; use one of"):
        ClipAttention(16, 2, "depth")
