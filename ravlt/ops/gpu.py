"""When operators run as Triton kernels."""

import functools
import warnings

import torch
from torch import Tensor

from .dispatch import may_call_custom_operators

try:
    import triton

    HAS_TRITON = True
    _TRITON_RELEASE = tuple(map(int, triton.__version__.split(".")[:2]))
except ImportError:
    HAS_TRITON = False
_DEVICE_TYPE = "cuda"
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


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
    return _warn_unless_supported(device)


@functools.cache
def _warn_unless_supported(device: torch.device) -> bool:
    reason = why_no_kernels(device)
    if reason is not None:
        warnings.warn(f"RAVLT computes in plain PyTorch: {reason}.", stacklevel=2)
    return reason is None


def why_no_kernels(device: torch.device) -> str | None:
    """Return what keeps Triton's kernels from a GPU, or None."""
    if not HAS_TRITON:
        return "Triton is not installed; run: pip install triton"
    if _TRITON_RELEASE < (3, 3):  # it takes no tuples as arguments
        return f"the kernels need Triton 3.3, and this is {triton.__version__}"
    if torch.version.hip:
        return "the kernels have not been tried on AMD GPUs"
    if capability(device) < (8, 0):
        name = torch.cuda.get_device_name(device)
        return f"the kernels need compute capability 8.0, and {name} has less"
    try:
        _prepare_triton()
    except Exception as error:  # whatever a compiler or a driver may raise
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        return (
            f"Triton does not start ({reason}); it needs a C compiler and Python's "
            f"headers, for example: sudo apt-get install gcc python3-dev"
        )
    return None


def _prepare_triton() -> None:
    """Let Triton compile its access to the driver, which it does when first used."""
    from triton.runtime import driver

    driver.active.utils  # noqa: B018


@torch.compiler.assume_constant_result
def capability(device: torch.device) -> tuple[int, int]:
    """Return the compute capability of a GPU."""
    return torch.cuda.get_device_capability(device)
