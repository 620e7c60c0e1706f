"""The rotary table against its formula, and what must hold for any position."""

import cmath
import copy

import pytest
import torch

from ravlt.errors import RAVLTError
from ravlt.models.attention.rope import (
    RoPE,
    rope_frequencies,
    rotary_table,
    rotate,
    rotate_,
)


def test_frequencies_include_both_ends():
    theta = rope_frequencies(64)
    assert len(theta) == 16
    assert theta[0] == 1.0
    assert theta[-1] == pytest.approx(1e-4, rel=1e-12)
    ratios = [b / a for a, b in zip(theta, theta[1:], strict=False)]
    assert ratios == pytest.approx([1e-4 ** (1 / 15)] * 15, rel=1e-12)
    assert rope_frequencies(4) == (1.0,)


def test_table_holds_the_turns_of_one_axis():
    table = rotary_table(16, 5, torch.device("cpu"), torch.float64)
    assert table.shape == (5, 4)
    for n in range(5):
        expected = [cmath.exp(1j * n * t) for t in rope_frequencies(16)]
        assert table[n].tolist() == pytest.approx(expected, abs=1e-14)


def test_rotation_acts_on_adjacent_pairs():
    torch.manual_seed(0)
    x = torch.randn(2, 3, 12, 8, dtype=torch.float64)
    y = rotate(x, (3, 4))
    theta = rope_frequencies(8)
    for n in range(12):
        for pair in range(4):
            position = n // 4 if pair < 2 else n % 4
            turn = cmath.exp(1j * position * theta[pair % 2])
            a, b = x[..., n, 2 * pair], x[..., n, 2 * pair + 1]
            torch.testing.assert_close(
                y[..., n, 2 * pair], a * turn.real - b * turn.imag
            )
            torch.testing.assert_close(
                y[..., n, 2 * pair + 1], b * turn.real + a * turn.imag
            )


def test_scores_depend_on_offsets_only():
    torch.manual_seed(0)
    q, k = torch.randn(2, 16, dtype=torch.float64)
    grid = (9, 11)
    rotated_q = rotate(q.expand(1, 1, 99, 16), grid).view(9, 11, 16)
    rotated_k = rotate(k.expand(1, 1, 99, 16), grid).view(9, 11, 16)
    base = rotated_q[2, 3] @ rotated_k[4, 1]
    shifted = rotated_q[5, 8] @ rotated_k[7, 6]
    torch.testing.assert_close(base, shifted, rtol=0, atol=1e-12)
    assert abs(base - rotated_q[2, 3] @ rotated_k[4, 2]) > 1e-3


def test_half_precision_leaves_the_table_alone():
    rope = RoPE(64).half()
    assert rope.angle.dtype == torch.float16
    table = rotary_table(64, 336, torch.device("cpu"), torch.float32)
    exact = rotary_table(64, 336, torch.device("cpu"), torch.float64)
    assert (table - exact).abs().max() < 1e-4


def test_table_is_built_once_a_length():
    rotary_table.cache_clear()
    x = torch.zeros(1, 1, 6, 8)
    for hw in ((2, 3), (2, 3), (3, 2)):
        rotate(x, hw)
    assert rotary_table.cache_info().misses == 2
    assert rotary_table.cache_info().hits == 4


def test_rotation_in_place_of_some_rows():
    torch.manual_seed(0)
    grid = (5, 4)
    # Heads lie between tokens and channels in memory, as in the layer.
    x = torch.randn(2, 20, 3, 8, dtype=torch.float64).transpose(1, 2)
    before = x.clone()
    expected = rotate(x, grid)
    torch.testing.assert_close(x, before, rtol=0, atol=0)
    rows = x[:, :, 8:16]
    assert rotate_(rows, grid, top=2) is rows
    torch.testing.assert_close(rows, expected[:, :, 8:16], rtol=0, atol=1e-14)
    for rest in (slice(8), slice(16, None)):
        torch.testing.assert_close(x[:, :, rest], before[:, :, rest], rtol=0, atol=0)


def test_table_from_inference_mode_serves_training():
    rotary_table.cache_clear()
    x = torch.randn(1, 1, 6, 8, requires_grad=True)
    with torch.inference_mode():
        rotate(x, (2, 3))
    rotate(x, (2, 3)).square().sum().backward()
    torch.testing.assert_close(x.grad, 2 * x.detach())  # rotations keep lengths


def test_buffer_is_each_angle_twice():
    angle = RoPE(64).angle
    theta = torch.tensor(rope_frequencies(64))
    assert angle.dtype == torch.float32
    torch.testing.assert_close(angle[0::2], theta, rtol=0, atol=0)
    torch.testing.assert_close(angle[1::2], theta, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_own_angles_load_in_any_precision(dtype):
    rope = RoPE(64)
    state = {"angle": RoPE(64).angle.to(dtype)}
    assert rope.load_state_dict(state).missing_keys == []


@pytest.mark.parametrize(
    "change",
    [
        lambda a: a + 2e-6,
        lambda a: a * float("nan"),
        lambda a: a[:-2],
        # The table of other rotary implementations: the last frequency is left out.
        lambda a: (10000.0 ** (-torch.arange(16) / 16)).repeat_interleave(2),
    ],
    ids=["shifted", "nan", "short", "other-base"],
)
def test_another_table_is_refused_by_name(change):
    parent = torch.nn.ModuleDict({"RoPE": RoPE(64)})
    state = copy.deepcopy(parent.state_dict())
    state["RoPE.angle"] = change(state["RoPE.angle"])
    with pytest.raises(RAVLTError, match=r"RoPE\.angle is not RAVLT's rotary table"):
        parent.load_state_dict(state)
