"""The block of RAVLT, its feed-forward network, and a stage of blocks."""

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
import torch.utils.checkpoint as cp
from timm.layers import DropPath
from torch import Tensor, nn

from .attention import Attention
from .attention.rope import RoPE
from .layers import ChannelLayerNorm, DepthwiseConv, Downsample, PointwiseConv


class ConvFFN(nn.Module):
    """Two 1 x 1 convolutions with GELU and a residual depthwise 3 x 3 in between."""

    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.fc1 = PointwiseConv(dim, hidden_dim)
        self.dwconv = DepthwiseConv(hidden_dim, 3)
        self.fc2 = PointwiseConv(hidden_dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        x = F.gelu(self.fc1(x))
        return self.fc2(x + self.dwconv(x))


class Block(nn.Module):
    """Position convolution, attention and feed-forward network, each residual.

    Args:
        dim: Channels, C.
        num_heads: Number of heads.
        attn_type: Name of the attention core.
        mlp_ratio: Hidden channels of the feed-forward network over C.
        drop_path: Probability of skipping a residual branch of a sample.
        layer_scale_init: First value of the layer scales.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        attn_type: str,
        mlp_ratio: float,
        drop_path: float,
        layer_scale_init: float,
    ) -> None:
        super().__init__()
        self.pos = DepthwiseConv(dim, 3)
        self.norm1 = ChannelLayerNorm(dim)
        self.attn = Attention(dim, num_heads, attn_type)
        self.norm2 = ChannelLayerNorm(dim)
        self.ffn = ConvFFN(dim, int(mlp_ratio * dim))
        self.drop_path = DropPath(drop_path)
        scale = torch.full((1, dim, 1, 1), float(layer_scale_init))
        self.gamma_1 = nn.Parameter(scale)
        self.gamma_2 = nn.Parameter(scale.clone())

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, H, W, C)."""
        x = x + self.pos(x)
        x = x + self.drop_path(self.gamma_1.flatten() * self.attn(self.norm1(x)))
        return x + self.drop_path(self.gamma_2.flatten() * self.ffn(self.norm2(x)))


class Stage(nn.Module):
    """Blocks at one resolution, and the step down to the next one.

    Args:
        dim: Channels, C.
        num_heads: Number of heads.
        attn_type: Name of the attention core.
        mlp_ratio: Hidden channels of the feed-forward networks over C.
        drop_paths: Skipping probability of each block; their number is the depth.
        layer_scale_init: First value of the layer scales.
        next_dim: Channels of the next stage, or None after the last.
        norm_cfg: Config of the downsampling's batch norm.
        with_cp: Whether to recompute activations in the backward pass.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        attn_type: str,
        mlp_ratio: float,
        drop_paths: Sequence[float],
        layer_scale_init: float,
        next_dim: int | None,
        norm_cfg: Mapping,
        with_cp: bool,
    ) -> None:
        super().__init__()
        self.attn_type = attn_type
        self.with_cp = with_cp
        self.RoPE = RoPE(dim // num_heads)
        self.blocks = nn.ModuleList(
            Block(dim, num_heads, attn_type, mlp_ratio, rate, layer_scale_init)
            for rate in drop_paths
        )
        self.downsample = None
        if next_dim is not None:
            self.downsample = Downsample(dim, next_dim, norm_cfg)

    def forward(self, x: Tensor) -> Tensor:
        """Runs the blocks, not the downsampling: outputs are taken in between."""
        for block in self.blocks:
            if self.with_cp and self.training and torch.is_grad_enabled():
                x = cp.checkpoint(block, x, use_reentrant=False)
            else:
                x = block(x)
        return x

    def extra_repr(self) -> str:
        return f"attention={self.attn_type}"
