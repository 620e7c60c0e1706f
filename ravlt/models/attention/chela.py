"""CHELA, experimental: built from summaries of the paper, not a reproduction.

CHELA combines short and long convolutions with hardware-efficient linear attention (Liu
et al., ICML 2024, arXiv 2406.08128). The equations of the paper were not available. Its
abstract and two public summaries agree on these parts: a short convolution (high
frequencies), SiLU and a long convolution (low frequencies) in sequence, merged by
structural reparameterization where possible; queries, keys and values from the result;
linear attention in tiles; an output gate; a residual. Everything else is our choice and
marked below.
"""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ravlt.ops.precision import at_least_float32, autocast_off

from ..layers import DepthwiseConv, PointwiseConv, batch_norm_affine, build_norm
from .base import join_heads, split_heads
from .norm import NormCore

_LONG, _SHORT = 13, 3  # sides of the kernels; our choice
_BATCH_NORM = {"type": "BN"}


class CHELACore(NormCore):
    """NormAttention with a short and a long convolution added to queries and keys.

    The core computes NormAttention of q + a_q u + b_q, k + a_k u + b_k and v, with
    u = SiLU(BN(long * x) + BN(short * x)) from depthwise convolutions of the layer's
    input x, and a scale a and a shift b for each channel. ``switch_to_deploy`` merges
    the two convolutions and their norms into one convolution, exactly.

    Our choices: the affine maps follow Mega (arXiv 2209.10655), with the projections of
    :class:`ravlt.models.ravlt.GatedAttention` in place of Mega's, so that RAVLT weights
    keep their meaning. elu + 1 and the norm are those of NormAttention.

    Args:
        dim: Channels over all heads, C.
        num_heads: Number of heads.
        norm_cfg: Batch norm of the convolutions, 'BN' or 'SyncBN'.
    """

    needs_input = True

    def __init__(
        self, dim: int, num_heads: int, norm_cfg: Mapping = _BATCH_NORM
    ) -> None:
        super().__init__(dim, num_heads)
        self.conv = ShortLongConv(dim, _LONG, _SHORT, norm_cfg)
        self.scale_q = nn.Parameter(torch.ones(dim))
        self.shift_q = nn.Parameter(torch.zeros(dim))
        self.scale_k = nn.Parameter(torch.ones(dim))
        self.shift_k = nn.Parameter(torch.zeros(dim))

    def forward(
        self, q: Tensor, k: Tensor, v: Tensor, hw: tuple[int, int], x: Tensor
    ) -> Tensor:
        return super().forward(*self._convolve(q, k, x), v, hw)

    def dense(
        self, q: Tensor, k: Tensor, v: Tensor, hw: tuple[int, int], x: Tensor
    ) -> Tensor:
        return super().dense(*self._convolve(q, k, x), v, hw)

    def kv_buffer(
        self, q: Tensor, k: Tensor, v: Tensor, hw: tuple[int, int], x: Tensor
    ) -> Tensor:
        return super().kv_buffer(*self._convolve(q, k, x), v, hw)

    def switch_to_deploy(self) -> None:
        """Merge the convolutions and their norms, using the running statistics."""
        self.conv = self.conv.merge()

    def _convolve(self, q: Tensor, k: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        with autocast_off(x):
            # Batch norm requires an input in the dtype of its parameters.
            u = self.conv(x.to(self.scale_q.dtype))
            u = F.silu(at_least_float32(u)).flatten(1, 2)
            u_q = self.scale_q * u + self.shift_q
            u_k = self.scale_k * u + self.shift_k
            heads = (self.num_heads, q.shape[-1])
            u_q, u_k = (t.unflatten(-1, heads).transpose(1, 2) for t in (u_q, u_k))
            return q + u_q, k + u_k


class CHELAAttention(nn.Module):
    """CHELA's layer: proj(core(q, k, v) SiLU(W_g u)) + u, u = low(SiLU(high(x))).

    Queries, keys and values are projections of u. From the summaries: the convolutions
    in sequence, projections of their result, linear attention, gate and residual. Our
    choices: depthwise kernels of 3 x 3 and 13 x 13; the branches that are merged (1 x 1
    beside the short kernel, 3 x 3 beside the long one, each with a batch norm); SiLU in
    the gate, which reads u; the residual, which starts at u; NormAttention as the
    mechanism. Linear attention in tiles would change the speed only, not the sums.

    Args:
        dim: Channels, C.
        num_heads: Number of heads.
        core: The mechanism.
        norm_cfg: Batch norm of the convolutions, 'BN' or 'SyncBN'.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        core: NormCore,
        norm_cfg: Mapping = _BATCH_NORM,
    ) -> None:
        super().__init__()
        self.core = core
        self.num_heads = num_heads
        self.high = ShortLongConv(dim, _SHORT, 1, norm_cfg)
        self.low = ShortLongConv(dim, _LONG, _SHORT, norm_cfg)
        self.qkv = PointwiseConv(dim, 3 * dim)
        self.gate = PointwiseConv(dim, dim)
        self.proj = PointwiseConv(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Mix the tokens of a grid, (B, H, W, C) -> (B, H, W, C)."""
        hw = (x.shape[1], x.shape[2])
        u = self.low(F.silu(self.high(x)))
        q, k, v = self.qkv(u).chunk(3, dim=-1)
        y = self.core(*(split_heads(t, self.num_heads) for t in (q, k, v)), hw)
        return self.proj(join_heads(y, hw) * F.silu(self.gate(u))) + u

    def switch_to_deploy(self) -> None:
        """Merge each pair of convolutions and their norms, using running statistics."""
        self.high, self.low = self.high.merge(), self.low.merge()


class ShortLongConv(nn.Module):
    """Sum of two zero-padded depthwise convolutions: BN(long * x) + BN(short * x).

    Args:
        channels: Number of channels, C.
        long: Side of the larger kernel; odd.
        short: Side of the smaller kernel; odd.
        norm_cfg: Batch norm, 'BN' or 'SyncBN'.
    """

    def __init__(self, channels: int, long: int, short: int, norm_cfg: Mapping) -> None:
        super().__init__()
        self.long = DepthwiseConv(channels, long, bias=False)
        self.norm_long = build_norm(norm_cfg, channels)
        self.short = DepthwiseConv(channels, short, bias=False)
        self.norm_short = build_norm(norm_cfg, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Convolve tokens of shape (B, H, W, C)."""
        long = self.norm_long(self.long(x).permute(0, 3, 1, 2))
        short = self.norm_short(self.short(x).permute(0, 3, 1, 2))
        return (long + short).permute(0, 2, 3, 1)

    @torch.no_grad()
    def merge(self) -> DepthwiseConv:
        """Return the one convolution that equals this module in eval mode."""
        size = self.long.weight.shape[-1]
        kernel, bias = 0.0, 0.0
        for conv, norm in (
            (self.long, self.norm_long),
            (self.short, self.norm_short),
        ):
            scale, shift = batch_norm_affine(norm)
            margin = (size - conv.weight.shape[-1]) // 2
            own = conv.weight * scale.view(-1, 1, 1, 1)
            kernel = kernel + F.pad(own, (margin,) * 4)
            bias = bias + shift
        merged = DepthwiseConv(len(kernel), size).to(self.long.weight)
        merged.weight.copy_(kernel)
        merged.bias.copy_(bias)
        merged.requires_grad_(self.long.weight.requires_grad)
        return merged.train(self.training)
