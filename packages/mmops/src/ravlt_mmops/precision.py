"""The dtypes that a kernel computes in."""

import torch
from torch import Tensor


def to_kernel_dtype(tensor: Tensor) -> Tensor:
    """Cast half precision to float32 where torchvision has no kernel for it.

    torchvision's CUDA kernels take float16; no kernel takes bfloat16, and the CPU
    kernels take neither.

    Args:
        tensor: Any floating-point tensor.

    Returns:
        The tensor itself, or a float32 copy.
    """
    if tensor.dtype == torch.bfloat16:
        return tensor.float()
    if tensor.dtype == torch.float16 and not tensor.is_cuda:
        return tensor.float()
    return tensor


def to_single(tensor: Tensor) -> Tensor:
    """Cast half precision to float32, and leave float64 as it is.

    Args:
        tensor: Any floating-point tensor.
    """
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor
