"""CHELA (Liu et al., ICML 2024, arXiv 2406.08128), in two dimensions; experimental."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...depthwise import DepthwiseConv, to_image, to_tokens
from ...precision import at_least_float32, autocast_off
from .norm import NormCore

_LONG, _SHORT = 13, 3  # sides of the kernels


class CHELACore(NormCore):
    """Linear attention whose queries and keys hold a short and a long convolution.

    With u = SiLU(BN(long * x) + BN(short * x)), depthwise convolutions of the layer's
    input x, and scales a and shifts b of each channel, NormAttention of
    q + a_q u + b_q, k + a_k u + b_k and v. For inference the two convolutions and
    their norms become one convolution, exactly.

    Experimental: the paper's abstract was at hand, its equations were not. It follows
    Mega (arXiv 2209.10655), whose queries and keys are affine maps of one projection of
    u; here the shell's own projections take the place of that one, so that weights of
    RAVLT keep their meaning. Kernel sizes, elu + 1 and the norm are our choice.

    Args:
        dim: Channels over all heads, C.
        num_heads: Number of heads.
    """

    needs_input = True

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__(dim, num_heads)
        self.conv = ShortLongConv(dim)
        self.scale_q = nn.Parameter(torch.ones(dim))
        self.shift_q = nn.Parameter(torch.zeros(dim))
        self.scale_k = nn.Parameter(torch.ones(dim))
        self.shift_k = nn.Parameter(torch.zeros(dim))

    def forward(
        self, q: Tensor, k: Tensor, v: Tensor, hw: tuple[int, int], x: Tensor
    ) -> Tensor:
        return super().forward(*self._convolved(q, k, x), v, hw)

    def dense(
        self, q: Tensor, k: Tensor, v: Tensor, hw: tuple[int, int], x: Tensor
    ) -> Tensor:
        return super().dense(*self._convolved(q, k, x), v, hw)

    def kv_buffer(
        self, q: Tensor, k: Tensor, v: Tensor, hw: tuple[int, int], x: Tensor
    ) -> Tensor:
        return super().kv_buffer(*self._convolved(q, k, x), v, hw)

    def switch_to_deploy(self) -> None:
        """Merges the convolutions and their norms, by the norms' running statistics."""
        self.conv = self.conv.merge()

    def _convolved(self, q: Tensor, k: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        with autocast_off(x):
            # As precise as its kernels: batch norms take no other mixture.
            u = self.conv(x.to(self.scale_q.dtype))
            u = F.silu(at_least_float32(u)).flatten(1, 2)
            u_q = self.scale_q * u + self.shift_q
            u_k = self.scale_k * u + self.shift_k
            heads = (self.num_heads, q.shape[-1])
            u_q, u_k = (t.unflatten(-1, heads).transpose(1, 2) for t in (u_q, u_k))
            return q + u_q, k + u_k


class ShortLongConv(nn.Module):
    """BN(long * x) + BN(short * x): depthwise 13 x 13 and 3 x 3, zero-padded.

    Args:
        channels: Number of channels, C.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.long = DepthwiseConv(channels, _LONG, bias=False)
        self.norm_long = nn.BatchNorm2d(channels)
        self.short = DepthwiseConv(channels, _SHORT, bias=False)
        self.norm_short = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        """Convolves tokens of shape (B, H, W, C)."""
        long = self.norm_long(to_image(self.long(x)))
        return to_tokens(long + self.norm_short(to_image(self.short(x))))

    @torch.no_grad()
    def merge(self) -> DepthwiseConv:
        """Gives the one convolution that equals this in eval mode."""
        merged = DepthwiseConv(len(self.long.weight), _LONG).to(self.long.weight)
        nn.init.zeros_(merged.weight)
        nn.init.zeros_(merged.bias)
        for conv, norm in (
            (self.long, self.norm_long),
            (self.short, self.norm_short),
        ):
            scale = norm.weight / (norm.running_var + norm.eps).sqrt()
            margin = (_LONG - conv.weight.shape[-1]) // 2
            kernel = conv.weight * scale.view(-1, 1, 1, 1)
            merged.weight.add_(F.pad(kernel, (margin,) * 4))
            merged.bias.add_(norm.bias - norm.running_mean * scale)
        merged.requires_grad_(self.long.weight.requires_grad)
        return merged.train(self.training)
