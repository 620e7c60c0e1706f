"""Where the Triton kernels run in tests: on a GPU, else in Triton's interpreter."""

import torch
import triton

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
INTERPRETED = DEVICE == "cpu"


def _let_numpy_convert_bounds() -> None:
    """Mend how the interpreter before Triton 3.9 reads the bounds of a loop.

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
