"""Where the Triton kernels run in tests: on a GPU, else in Triton's interpreter."""

import torch
import triton

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
INTERPRETED = DEVICE == "cpu"
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def autocast(dtype: torch.dtype) -> torch.autocast:
    """Return a context of mixed precision on the device; of float32, of none."""
    return torch.autocast(DEVICE, dtype, enabled=dtype != torch.float32)


def rounding(dtype: torch.dtype) -> float:
    """Bound the error of an operator relative to its largest result.

    In float32 up to a hundred roundings add up along the sum of a program. In half
    precision sums run in float32: the operands of a product, S and the result are
    rounded once each, by half a unit.
    """
    return 1e-5 if dtype == torch.float32 else 4 * torch.finfo(dtype).eps


def _let_numpy_convert_bounds() -> None:
    """Fix how the interpreter before Triton 3.9 reads the bounds of a loop.

    NumPy 2.4 and later convert no array of one element to a number.
    """
    from triton.runtime import interpreter

    patch = interpreter._patch_lang_tensor

    def patch_with_index(tensor, scope) -> None:
        patch(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: self.handle.data.item())

    interpreter._patch_lang_tensor = patch_with_index


if INTERPRETED and tuple(map(int, triton.__version__.split(".")[:2])) < (3, 9):
    _let_numpy_convert_bounds()
