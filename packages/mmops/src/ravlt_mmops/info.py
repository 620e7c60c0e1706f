"""What the operators were built with, for the hosts' reports of the environment."""

import torch
import torchvision

from ravlt_mmops import __version__


def get_compiler_version() -> str:
    """Return which package provides the operators, in place of a compiler."""
    return f"ravlt-mmops {__version__} on torchvision {torchvision.__version__}"


def get_compiling_cuda_version() -> str:
    """Return the CUDA version of torchvision's operators, or 'not available'."""
    version = torch.ops.torchvision._cuda_version()  # 13020 for 13.2, -1 without CUDA
    if version < 0:
        return "not available"
    return f"{version // 1000}.{version % 1000 // 10}"
