"""Two-dimensional rotary position embedding, as in the released RAVLT.

The first half of each head turns by the row, the second half by the column; both
use the frequencies 10000^(-m / (M - 1)), m = 0 .. M - 1, with M = d / 4. Positions are
raw integers, whatever the resolution.
"""

import functools
import math

import torch
from torch import Tensor, nn

from ravlt.errors import RAVLTError

_BASE = 10000.0
_TOLERANCE = 1e-6


def rope_frequencies(head_dim: int) -> tuple[float, ...]:
    """Gives the d / 4 frequencies; the first is 1, the last 1e-4 (both included).

    Plain floats, because a tensor would follow the module into half precision, where
    the table is off by 0.1 (float16) or meaningless (bfloat16) at 336 positions.
    """
    count = head_dim // 4
    return tuple(_BASE ** (-m / max(count - 1, 1)) for m in range(count))


# Bounded, because multi-scale training meets many sizes: a 200 x 336 grid of
# 64-dimensional heads takes 17 MB.
@functools.lru_cache(maxsize=32)
def rotary_table(
    head_dim: int, hw: tuple[int, int], device: torch.device, dtype: torch.dtype
) -> Tensor:
    """Builds the rotations of a grid as unit complex numbers, or finds them cached.

    Args:
        head_dim: Channels of a head, d.
        hw: Height and width of the grid, in tokens.
        device: Where the table lives.
        dtype: ``torch.float32``, or ``torch.float64`` for tests.

    Returns:
        exp(i angle) as a complex tensor of shape (H * W, d / 2): first the row's
        d / 4 angles, then the column's.
    """
    height, width = hw
    # A table born in inference mode could not be used by a later training step.
    with torch.inference_mode(False), torch.no_grad():
        theta = torch.tensor(rope_frequencies(head_dim), device=device, dtype=dtype)
        row = torch.arange(height, device=device, dtype=dtype)[:, None] * theta
        col = torch.arange(width, device=device, dtype=dtype)[:, None] * theta
        angles = torch.cat(
            (
                row[:, None].expand(height, width, -1),
                col[None].expand(height, width, -1),
            ),
            dim=-1,
        ).flatten(0, 1)
        return torch.polar(torch.ones_like(angles), angles)


def rotate(x: Tensor, hw: tuple[int, int]) -> Tensor:
    """Turns each adjacent pair of features by its token's position.

    Args:
        x: Queries or keys of shape (B, heads, H * W, d), float32 or float64.
        hw: Height and width of the grid, in tokens.

    Returns:
        A tensor of the same shape: (a, b) -> (a cos - b sin, b cos + a sin).
    """
    table = rotary_table(x.shape[-1], hw, x.device, x.dtype)
    if x.stride(-1) != 1:
        x = x.contiguous()
    # A complex product is one pass over memory; the real form takes six.
    pairs = torch.view_as_complex(x.unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * table).flatten(-2)


class RoPE(nn.Module):
    """Keeps the ``angle`` buffer of released checkpoints, and checks it on load.

    The rotation never reads it (see :func:`rope_frequencies`); a checkpoint with
    other angles was trained with another position embedding and must not load.

    Args:
        head_dim: Channels of a head, a multiple of 4.
    """

    def __init__(self, head_dim: int) -> None:
        super().__init__()
        self.head_dim = head_dim
        self.register_buffer("angle", self._expected())

    def _expected(self) -> Tensor:
        theta = torch.tensor(rope_frequencies(self.head_dim), dtype=torch.float32)
        return theta.repeat_interleave(2)

    def _load_from_state_dict(self, state_dict, prefix, *args) -> None:
        key = f"{prefix}angle"
        if key in state_dict:
            self._check(key, state_dict[key])
        super()._load_from_state_dict(state_dict, prefix, *args)

    def _check(self, key: str, found: Tensor) -> None:
        # A file in half precision holds the same angles, rounded.
        expected = self._expected().to(found.dtype).float()
        found = found.detach().float().cpu()
        if found.shape != expected.shape:
            worst = math.inf
        else:
            worst = (found - expected).abs().max().item()
        # Not `worst > tolerance`, which a NaN would pass.
        if not worst <= _TOLERANCE:
            raise RAVLTError(
                f"The checkpoint's {key} is not RAVLT's rotary table (it differs by "
                f"{worst:.2g}): the weights were trained with another position "
                f"embedding or head dimension, so use a RAVLT checkpoint of this arch."
            )

    def extra_repr(self) -> str:
        return f"head_dim={self.head_dim}"
