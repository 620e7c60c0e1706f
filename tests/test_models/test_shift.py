"""Spatial shifts of channels, alone and in feature fixation."""

import pytest
import torch

from helpers.core_cases import GRIDS, build_shaken, draw
from helpers.core_twins import TWINS, copied_in_space
from ravlt.models.attention.shift import spatial_shift

grids = pytest.mark.parametrize("hw", GRIDS, ids=lambda hw: f"{hw[0]}x{hw[1]}")


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


def test_too_few_channels_to_move():
    x = draw((3, 4), 1, 4)[0]
    assert torch.equal(spatial_shift(x, (3, 4)), x)


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
