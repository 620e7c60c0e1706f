"""The angle table of checkpoints: its values, and the error for any other table."""

import copy

import pytest
import torch

from ravlt.errors import RAVLTError
from ravlt.models.attention.rope import RoPE
from ravlt.ops.rotary import rotary_frequencies


def test_buffer_is_each_angle_twice():
    angle = RoPE(64).angle
    theta = rotary_frequencies(64)
    assert angle.dtype == torch.float32
    torch.testing.assert_close(angle[0::2], theta, rtol=1e-6, atol=0)
    assert torch.equal(angle[0::2], angle[1::2])


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
        # Other rotary implementations have this table, without the last frequency.
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
