"""The rotary table that released checkpoints carry."""

import math

import torch
from torch import Tensor, nn

from ravlt.errors import RAVLTError
from ravlt.ops.rotary import rotary_frequencies

_TOLERANCE = 1e-6


class RoPE(nn.Module):
    """Keeps the ``angle`` buffer of released checkpoints, and checks it on load.

    The rotation never reads it, see :func:`ravlt.ops.rotary.rotary_frequencies`. A
    checkpoint with other angles was trained with another position embedding and must
    not load.

    Args:
        head_dim: Channels of a head, a multiple of 4.
    """

    def __init__(self, head_dim: int) -> None:
        super().__init__()
        self.head_dim = head_dim
        default = torch.empty(0).device
        self.register_buffer("angle", self._expected().to(default))

    def _expected(self) -> Tensor:
        """Compute the buffer on the CPU: some devices have no float64."""
        theta = rotary_frequencies(self.head_dim, torch.device("cpu"), torch.float64)
        return theta.float().repeat_interleave(2)

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
