"""Whether somebody writes the operations down instead of only running them."""

import torch

# Older than PyTorch 2.3, torch.compiler cannot say; then nothing is told apart.
_is_compiling = getattr(torch.compiler, "is_compiling", lambda: False)


def is_recorded() -> bool:
    """Tells compilers and tracers: loops unroll there, and complex numbers hurt."""
    return _is_compiling() or torch.jit.is_tracing()
