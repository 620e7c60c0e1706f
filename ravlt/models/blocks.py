"""The block of RAVLT, its feed-forward network, and a stage of blocks."""

from collections.abc import Iterator, Mapping, Sequence

import torch
import torch.nn.functional as F
import torch.utils.checkpoint as cp
from timm.layers import DropPath
from torch import Tensor, nn

from .attention import build_attention
from .attention.rope import RoPE
from .depthwise import DepthwiseConv
from .layers import ChannelLayerNorm, Downsample, PointwiseConv
from .precision import autocast_off
from .tiling import Region, Workspace, grid_tiles, row_tiles


class ConvFFN(nn.Module):
    """Two 1 x 1 convolutions with GELU and a residual depthwise 3 x 3 in between."""

    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.fc1 = PointwiseConv(dim, hidden_dim)
        self.dwconv = DepthwiseConv(hidden_dim, 3, residual=True)
        self.fc2 = PointwiseConv(hidden_dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.fc1(x)
        if not torch.is_grad_enabled():
            return self._from_hidden(hidden)
        # Two cheap passes more in the backward pass, and of the three widest tensors of
        # the network one is kept.
        return cp.checkpoint(
            self._from_hidden, hidden, use_reentrant=False, preserve_rng_state=False
        )

    def _from_hidden(self, hidden: Tensor) -> Tensor:
        return self.fc2(self.dwconv(F.gelu(hidden)))

    def tiles(
        self, x: Tensor, norm: nn.Module, workspace: Workspace
    ) -> Iterator[tuple[Region, Tensor]]:
        """Computes ``self(norm(x))`` for inference, tile by tile.

        All of ``x`` has been read when the first tile comes: it may then be changed.

        Args:
            x: Tokens of shape (B, H, W, C).
            norm: The norm before this layer.
            workspace: Size of tiles, and memory.

        Yields:
            The index of a tile in ``x``, and its part of the result.
        """
        normed = workspace.empty("q", x, x.dtype)
        for top, bottom in row_tiles(*x.shape[1:3], workspace.side):
            normed[:, top:bottom] = norm(x[:, top:bottom])
        for tile, outer, inner in grid_tiles(*x.shape[1:3], workspace.side, halo=1):
            hidden = self.fc1(normed[outer])
            hidden = self.dwconv(F.gelu(hidden, out=hidden))
            # Cropped after the product, whose input would have to be copied otherwise.
            yield tile, self.fc2(hidden)[inner]


class Block(nn.Module):
    """Position convolution, attention and feed-forward network, each residual.

    Args:
        dim: Channels, C.
        num_heads: Number of heads.
        attn_type: Its attention, see :func:`.attention.build_attention`.
        mlp_ratio: Hidden channels of the feed-forward network over C.
        drop_path: Probability of skipping a residual branch of a sample.
        layer_scale_init: First value of the layer scales.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        attn_type: str | Mapping,
        mlp_ratio: float,
        drop_path: float,
        layer_scale_init: float,
    ) -> None:
        super().__init__()
        self.pos = DepthwiseConv(dim, 3)
        self.norm1 = ChannelLayerNorm(dim)
        self.attn = build_attention(attn_type, dim, num_heads)
        self.norm2 = ChannelLayerNorm(dim)
        self.ffn = ConvFFN(dim, int(mlp_ratio * dim))
        self.drop_path = DropPath(drop_path)
        scale = torch.full((1, dim, 1, 1), float(layer_scale_init))
        self.gamma_1 = nn.Parameter(scale)
        self.gamma_2 = nn.Parameter(scale.clone())
        self.deployed = False

    def forward(self, x: Tensor, workspace: Workspace | None = None) -> Tensor:
        """Mixes tokens and channels.

        Args:
            x: Tokens of shape (B, H, W, C).
            workspace: For inference in tiles; None computes the whole grid at once.

        Returns:
            A new tensor of the same shape.
        """
        # The residual stream stays as precise as the parameters, also under autocast.
        with autocast_off(x):
            x = x.to(self.pos.weight.dtype)
            x = self.pos(x) if self.deployed else x + self.pos(x)
        for layer, norm, gamma in (
            (self.attn, self.norm1, self.gamma_1),
            (self.ffn, self.norm2, self.gamma_2),
        ):
            if workspace is None:
                x = torch.addcmul(x, self._scale(gamma, x), layer(norm(x)))
                continue
            for tile, branch in layer.tiles(x, norm, workspace):
                if self.deployed:
                    x[tile].add_(branch)
                else:
                    x[tile].addcmul_(self._scale(gamma, x), branch)
        return x

    def _scale(self, gamma: Tensor, x: Tensor) -> Tensor:
        """The layer scale of each sample, 0 where drop path skips the branch."""
        gamma = gamma.view(1, 1, 1, -1)
        if not (self.training and self.drop_path.drop_prob):
            return gamma
        return self.drop_path(gamma.expand(len(x), 1, 1, -1))

    def switch_to_deploy(self) -> None:
        """Folds the identity, norms' scales and layer scales into products."""
        if self.deployed:
            return
        self.pos.fold_identity()
        self.ffn.dwconv.fold_identity()
        self.attn.switch_to_deploy(self.norm1.norm)
        self.ffn.fc1.fold_norm(self.norm2.norm)
        self.attn.proj.fold_scale(self.gamma_1)
        self.ffn.fc2.fold_scale(self.gamma_2)
        self.deployed = True


class Stage(nn.Module):
    """Blocks at one resolution, and the step down to the next one.

    Args:
        dim: Channels, C.
        num_heads: Number of heads.
        attn_types: Attention of each block; their number is the depth.
        mlp_ratio: Hidden channels of the feed-forward networks over C.
        drop_paths: Skipping probability of each block.
        layer_scale_init: First value of the layer scales.
        next_dim: Channels of the next stage, or None after the last.
        norm_cfg: Config of the downsampling's batch norm.
        with_cp: Whether to recompute activations in the backward pass.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        attn_types: Sequence[str | Mapping],
        mlp_ratio: float,
        drop_paths: Sequence[float],
        layer_scale_init: float,
        next_dim: int | None,
        norm_cfg: Mapping,
        with_cp: bool,
    ) -> None:
        super().__init__()
        self.attn_types = tuple(attn_types)
        self.with_cp = with_cp
        self.RoPE = RoPE(dim // num_heads)
        self.blocks = nn.ModuleList(
            Block(dim, num_heads, name, mlp_ratio, rate, layer_scale_init)
            for name, rate in zip(attn_types, drop_paths, strict=True)
        )
        self.downsample = None
        if next_dim is not None:
            self.downsample = Downsample(dim, next_dim, norm_cfg)

    def forward(self, x: Tensor, workspace: Workspace | None = None) -> Tensor:
        """Runs the blocks, not the downsampling: outputs are taken in between.

        Args:
            x: Tokens of shape (B, H, W, C).
            workspace: For inference in tiles; None computes the whole grid at once.

        Returns:
            A new tensor of the same shape.
        """
        images = (x,) if workspace is None else workspace.split_batch(x)
        for block in self.blocks:
            if self.with_cp and self.training and torch.is_grad_enabled():
                images = [cp.checkpoint(block, *images, use_reentrant=False)]
            else:
                images = [block(image, workspace) for image in images]
        return torch.cat(images) if len(images) > 1 else images[0]

    def switch_to_deploy(self) -> None:
        """Folds what can be folded, in the blocks and the downsampling."""
        for block in self.blocks:
            block.switch_to_deploy()
        if self.downsample is not None:
            self.downsample.switch_to_deploy()

    def extra_repr(self) -> str:
        return f"attention={', '.join(map(str, self.attn_types))}"
