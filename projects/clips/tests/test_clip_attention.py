"""Shift in time, and attention over either axis of a clip, against explicit loops."""

import pytest
import torch
from torch import Tensor

from clip_attention import ClipAttention, temporal_shift
from helpers.core_cases import HEAD_DIM, HEADS, draw
from helpers.core_twins import TWINS, copied_in_space
from helpers.tool_runs import ROOT, run_readme_example
from ravlt.errors import RAVLTError

C = HEADS * HEAD_DIM


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


@pytest.mark.parametrize("frames", [1, 2, 5])
@pytest.mark.parametrize("heads", [1, 2, 8])
def test_temporal_shift_copies_frames(frames, heads):
    x = draw((1, frames), heads, 32 // heads)[0].detach()
    torch.testing.assert_close(temporal_shift(x), copied_in_time(x), rtol=0, atol=0)


def test_too_few_channels_to_move():
    x = draw((1, 3), 1, 4)[0]
    assert torch.equal(temporal_shift(x), x)


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
    """Mix tokens of shape (B, N, C) by the explicit matrix."""
    q, k, v = heads(q), heads(k), heads(v)
    y = TWINS["fixation"](layer.core, q, k, v, None) @ v
    return torch.cat(y.unbind(1), -1)


def over_time(layer: ClipAttention, x: Tensor) -> Tensor:
    """Attend over time, position by position."""
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
    """Attend over space, frame by frame."""
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
    """A token reaches one position, nine with shifts; one frame, three with shifts."""
    x = torch.randn(1, 5, 5, 5, C, dtype=torch.float64)
    changed = x.clone()
    changed[:, 2, 2, 2] += torch.randn(C)
    for shift in (False, True):
        layer = build(axis, shift)
        reached = (layer(changed) - layer(x)).abs().sum(-1)[0] > 1e-12
        if axis == "time":
            positions = reached.any(0)
            assert torch.equal(reached, positions.expand(5, 5, 5))
            assert positions.sum() == (9 if shift else 1)
        else:
            assert reached.any(2).any(1).tolist() == [0, shift, 1, shift, 0]


def test_parameters():
    layer = ClipAttention(96, 4, "time")
    count = sum(p.numel() for p in layer.parameters())
    assert count == 4 * 96**2 + 4 * 96 + 2 * (3 * 24**2 + 24)


def test_unknown_axis():
    with pytest.raises(RAVLTError, match="axis='depth' is unknown; use one of"):
        ClipAttention(16, 2, "depth")


def test_the_example_of_the_readme():
    printed, expected = run_readme_example(ROOT / "projects/clips")
    assert printed == expected
