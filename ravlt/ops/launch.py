"""What the launches of all Triton kernels share."""

import torch
from torch import Tensor

# Triton 3.10 no longer fuses multiplications with additions by default.
LAUNCH_OPTIONS = dict(enable_fp_fusion=True)
MAX_SPLITS = 256
_PROGRAMS_PER_MULTIPROCESSOR = 4
_MIN_SPLIT_TOKENS = 128
LARGEST_TILE = 32


def divide_tokens(heads: int, tokens: int, device: torch.device) -> tuple[int, int]:
    """Divide the tokens of each head so that the programs fill the GPU.

    Args:
        heads: Heads of all images.
        tokens: Tokens of a head.
        device: The GPU.

    Returns:
        The number of splits, at most :data:`MAX_SPLITS`, and tokens of a split.
    """
    splits = count_programs(device) // max(heads, 1)
    splits = min(max(splits, 1), MAX_SPLITS)
    size = max(-(-tokens // splits), _MIN_SPLIT_TOKENS)
    size = -(-size // LARGEST_TILE) * LARGEST_TILE
    return max(-(-tokens // size), 1), size


def count_programs(device: torch.device) -> int:
    """Count the programs that fill a GPU."""
    properties = torch.cuda.get_device_properties(device)
    return _PROGRAMS_PER_MULTIPROCESSOR * properties.multi_processor_count


def with_contiguous_channels(x: Tensor) -> Tensor:
    """Return ``x``, copied if its last dimension is not contiguous."""
    return x if x.stride(-1) == 1 else x.contiguous()


def empty_tokens(like: Tensor) -> Tensor:
    """Allocate (B, heads, N, d), laid out as (B, N, heads, d): heads join as a view."""
    batch, heads, tokens, dim = like.shape
    return like.new_empty(batch, tokens, heads, dim).transpose(1, 2)
