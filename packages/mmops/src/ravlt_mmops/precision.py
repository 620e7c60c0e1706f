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


def at_least_float32(tensor: Tensor) -> Tensor:
    """Cast half precision to float32 for a formula in plain PyTorch.

    Args:
        tensor: Any floating-point tensor.

    Returns:
        The tensor itself, or a float32 copy.
    """
    return tensor.float() if tensor.dtype.itemsize == 2 else tensor
