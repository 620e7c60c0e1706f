"""Random matrices for the tests of ranks, and their spectra by NumPy."""

import numpy as np
import torch
from torch import Tensor


def draw(*shape: int, seed: int = 0) -> Tensor:
    """Return random numbers in float64."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def spectra(matrices: Tensor) -> Tensor:
    """Return singular values, from NumPy instead of the library."""
    return torch.from_numpy(np.linalg.svd(matrices.numpy(), compute_uv=False))
