"""When operators run as Triton kernels, and how tokens are divided among programs."""

import functools
import importlib.util
import warnings

import torch
from torch import Tensor

from .dispatch import may_call_custom_operators

HAS_TRITON = importlib.util.find_spec("triton") is not None
# The kernels add up so many splits in one step.
MAX_SPLITS = 128
# Triton 3.10 no longer fuses multiplications with additions by default.
LAUNCH_OPTIONS = dict(enable_fp_fusion=True)
_DEVICE_TYPE = "cuda"
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_PROGRAMS_PER_MULTIPROCESSOR = 4
_MIN_SPLIT_TOKENS = 256


def runs_as_kernel(*tensors: Tensor) -> bool:
    """True if an operator on these tensors takes its Triton kernels."""
    x = tensors[0]
    if x.device.type != _DEVICE_TYPE or not may_call_custom_operators(x):
        return False
    if any(t.dtype not in _DTYPES or t.device != x.device for t in tensors):
        return False
    return _is_supported(x.device)


@torch.compiler.assume_constant_result
def _is_supported(device: torch.device) -> bool:
    return _check(device)


@functools.cache
def _check(device: torch.device) -> bool:
    """Check Triton and the GPU; warn once if something is missing."""
    if not HAS_TRITON:
        missing = "Triton is not installed; run: pip install triton"
    elif torch.version.hip:
        missing = "its kernels have not been tried on AMD GPUs"
    elif capability(device) < (8, 0):
        name = torch.cuda.get_device_name(device)
        missing = f"its kernels need compute capability 8.0, and {name} has less"
    else:
        return True
    warnings.warn(f"RAVLT computes in plain PyTorch: {missing}.", stacklevel=2)
    return False


def divide_tokens(heads: int, tokens: int, device: torch.device) -> tuple[int, int]:
    """Divide the tokens of each head so that the programs fill the GPU.

    Args:
        heads: Heads of all images.
        tokens: Tokens of a head.
        device: The GPU.

    Returns:
        The number of splits, at most :data:`MAX_SPLITS`, and tokens of a split.
    """
    programs = _PROGRAMS_PER_MULTIPROCESSOR * multiprocessors(device)
    splits = min(max(programs // max(heads, 1), 1), MAX_SPLITS)
    # A multiple of every size of tile.
    size = max(-(-tokens // splits), _MIN_SPLIT_TOKENS)
    size = -(-size // _MIN_SPLIT_TOKENS) * _MIN_SPLIT_TOKENS
    return max(-(-tokens // size), 1), size


@torch.compiler.assume_constant_result
def capability(device: torch.device) -> tuple[int, int]:
    """Return the compute capability of a GPU."""
    return torch.cuda.get_device_capability(device)


def multiprocessors(device: torch.device) -> int:
    """Return how many multiprocessors a GPU has."""
    return torch.cuda.get_device_properties(device).multi_processor_count


def with_contiguous_channels(x: Tensor) -> Tensor:
    """Return ``x``, copied if its last dimension is not contiguous."""
    return x if x.stride(-1) == 1 else x.contiguous()


def empty_tokens(like: Tensor) -> Tensor:
    """Allocate (B, heads, N, d), laid out as (B, N, heads, d): heads join as a view."""
    batch, heads, tokens, dim = like.shape
    return like.new_empty(batch, tokens, heads, dim).transpose(1, 2)
