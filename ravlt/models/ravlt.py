"""RAVLT, the Rank-Augmented Vision Linear Transformer, as the paper states it.

"Breaking the Low-Rank Dilemma of Linear Attention" (CVPR 2025, arXiv 2411.07635).
Tokens lie channels-last, (B, H, W, C), from the stem to the output norms. Names of
modules and shapes of parameters are those of the released checkpoints.
"""

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from mmengine.model import initialize, update_init_info
from mmengine.registry import MODELS
from timm.layers import DropPath
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ravlt.config import type_name
from ravlt.ops.layout import channels_first
from ravlt.ops.recompute import checkpoint_module, recompute
from ravlt.ops.residual import add_scaled

from .archs import (
    NUM_STAGES,
    RELEASED_ATTN_TYPES,
    AttnTypes,
    check_frozen_stages,
    check_out_indices,
    check_tile,
    per_stage,
    resolve_arch,
    resolve_attn_types,
    split_profile,
)
from .attention import build_core, build_paper_attention, join_heads, split_heads
from .attention.rope import RoPE
from .base import BaseRAVLT
from .layers import (
    ChannelLayerNorm,
    DepthwiseConv,
    PointwiseConv,
    build_norm,
    init_convolution,
)


class Stem(nn.Module):
    """Four 3 x 3 convolutions: pixels to tokens at a quarter of the resolution.

    Args:
        in_channels: Channels of the image.
        dim: Channels of the tokens, C.
        norm_cfg: Config of the batch norms.
    """

    def __init__(self, in_channels: int, dim: int, norm_cfg: Mapping) -> None:
        super().__init__()
        half = dim // 2
        channels = (in_channels, half, half, half, dim)
        layers = []
        for i, stride in enumerate((2, 1, 1, 2)):
            if i:
                layers.append(nn.GELU())
            layers.append(nn.Conv2d(channels[i], channels[i + 1], 3, stride, padding=1))
            layers.append(build_norm(norm_cfg, channels[i + 1]))
        self.proj = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, H, W) -> (B, ceil(H / 4), ceil(W / 4), C)."""
        x = x.contiguous(memory_format=torch.channels_last)
        return self.proj(x).permute(0, 2, 3, 1)


class Downsample(nn.Module):
    """A strided 3 x 3 convolution and a batch norm: halves the grid, rounding up."""

    def __init__(self, in_channels: int, out_channels: int, norm_cfg: Mapping) -> None:
        super().__init__()
        self.reduction = nn.Conv2d(in_channels, out_channels, 3, 2, padding=1)
        self.norm = build_norm(norm_cfg, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, ceil(H / 2), ceil(W / 2), out_channels)."""
        x = self.norm(self.reduction(x.permute(0, 3, 1, 2)))
        return x.permute(0, 2, 3, 1)


class ConvFFN(nn.Module):
    """fc2(h + dwconv(h)) with h = GELU(fc1(x)).

    Args:
        dim: Channels, C.
        hidden_dim: Channels of h.
        recompute: Whether the backward pass computes GELU and dwconv again, see
            :class:`RAVLT`.
    """

    def __init__(
        self, dim: int, hidden_dim: int, recompute: bool | None = None
    ) -> None:
        super().__init__()
        self.recompute = recompute
        self.fc1 = PointwiseConv(dim, hidden_dim)
        self.dwconv = DepthwiseConv(hidden_dim, 3, residual=True)
        self.fc2 = PointwiseConv(hidden_dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Mix the channels of tokens (B, H, W, C)."""
        hidden = self.fc1(x)
        if self.training and not torch.jit.is_scripting():
            return recompute(self._activate_and_project, hidden, self.recompute)
        return self._activate_and_project(hidden)

    def _activate_and_project(self, hidden: Tensor) -> Tensor:
        return self.fc2(self.dwconv(F.gelu(hidden)))


class GatedAttention(nn.Module):
    """proj((core(q, k, v) + LePE(v)) * o), with q, k, v, o = qkvo(x).

    The gate o is linear in the input and has no activation (paper, Section 3: the
    augmentation of the output's rank). LePE is a depthwise 5 x 5 convolution of v.
    With the core 'rala' this is RALA.

    Args:
        dim: Channels, C.
        num_heads: Number of heads.
        core: Name of the core, or a dict with its name (``type``) and options.
        norm_cfg: Config of batch norms, for cores that have any.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        core: str | Mapping,
        norm_cfg: Mapping | None = None,
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkvo = PointwiseConv(dim, 4 * dim)
        self.lepe = DepthwiseConv(dim, 5)
        self.proj = PointwiseConv(dim, dim)
        self.core = build_core(core, dim, num_heads, norm_cfg)

    def forward(self, x: Tensor) -> Tensor:
        """Mix normalized tokens (B, H, W, C)."""
        hw = (x.shape[1], x.shape[2])
        q, k, v, gate = self.qkvo(x).chunk(4, dim=-1)
        q, k = split_heads(q, self.num_heads), split_heads(k, self.num_heads)
        heads = split_heads(v, self.num_heads)
        if self.core.needs_input:
            y = self.core(q, k, heads, hw, x)
        else:
            y = self.core(q, k, heads, hw)
        return self.proj((join_heads(y, hw) + self.lepe(v)) * gate)


def build_attention(
    spec: str | Mapping, dim: int, num_heads: int, norm_cfg: Mapping | None = None
) -> nn.Module:
    """Build the attention of a block, (B, H, W, C) -> (B, H, W, C).

    Args:
        spec: A key of :data:`ravlt.models.attention.CORES`, or a dict with that
            (``type``), options of the core, and ``profile``: ``'gated'`` (default) is
            :class:`GatedAttention`, the same layer for every mechanism; ``'paper'``
            gives the mechanism the auxiliaries of its own paper in its place.
        dim: Channels, C.
        num_heads: Number of heads.
        norm_cfg: Config of batch norms, for mechanisms that have any.

    Raises:
        RAVLTError: If the name, the profile or an option is unknown.
    """
    profile, core = split_profile(spec)
    if profile == "paper":
        return build_paper_attention(core, dim, num_heads, norm_cfg)
    return GatedAttention(dim, num_heads, core, norm_cfg)


class Block(nn.Module):
    """Position convolution, attention and feed-forward network, each residual.

    Args:
        dim: Channels, C.
        attn: The attention.
        ffn: The feed-forward network.
        drop_path: Probability of skipping a residual branch of a sample.
        layer_scale_init: First value of the layer scales.
    """

    def __init__(
        self,
        dim: int,
        attn: nn.Module,
        ffn: ConvFFN,
        drop_path: float,
        layer_scale_init: float,
    ) -> None:
        super().__init__()
        self.pos = DepthwiseConv(dim, 3, residual=True)
        self.norm1 = ChannelLayerNorm(dim)
        self.attn = attn
        self.norm2 = ChannelLayerNorm(dim)
        self.ffn = ffn
        self.drop_path = DropPath(drop_path)
        scale = torch.full((1, dim, 1, 1), float(layer_scale_init))
        self.gamma_1 = nn.Parameter(scale)
        self.gamma_2 = nn.Parameter(scale.clone())

    def forward(self, x: Tensor) -> Tensor:
        """Mix tokens and channels of (B, H, W, C)."""
        # Autocast rounds branches, not the sum that runs through all blocks.
        x = self.pos(x.to(self.gamma_1.dtype))
        x = self.add_scaled(x, self.gamma_1, self.attn(self.norm1(x)))
        return self.add_scaled(x, self.gamma_2, self.ffn(self.norm2(x)))

    def add_scaled(self, x: Tensor, gamma: Tensor, branch: Tensor) -> Tensor:
        """Compute x + drop_path(gamma * branch) in one pass over the tokens.

        Drop path acts on each sample's C layer scales in place of its H W C values.
        """
        gamma = gamma.view(1, 1, 1, -1)
        if self.training:
            gamma = self.drop_path(gamma.expand(x.shape[0], 1, 1, -1))
        return add_scaled(x, gamma, branch)


class Stage(nn.Module):
    """Blocks at one resolution, and the step down to the next one.

    Args:
        dim: Channels, C.
        num_heads: Number of heads.
        blocks: The blocks.
        downsample: The step down; None after the last stage.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        blocks: Sequence[Block],
        downsample: Downsample | None,
    ) -> None:
        super().__init__()
        self.with_cp = False
        self.RoPE = RoPE(dim // num_heads)
        self.blocks = nn.ModuleList(blocks)
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        """Run the blocks, not the downsampling: outputs are taken in between."""
        for block in self.blocks:
            if self.with_cp and self.training and not torch.jit.is_scripting():
                x = checkpoint_module(block, x)
            else:
                x = block(x)
        return x


class RAVLTEncoder(BaseRAVLT):
    """Stem and stages, which backbone and classifier share.

    Args:
        num_stages: How many stages are built, from the first. All other arguments are
            those of :class:`RAVLT`.

    Raises:
        RAVLTError: If an argument does not make sense.
    """

    def __init__(
        self,
        arch: str | Mapping,
        attn_types: AttnTypes = RELEASED_ATTN_TYPES,
        *,
        in_channels: int = 3,
        num_stages: int = NUM_STAGES,
        drop_path_rate: float | None = None,
        layer_scale_init: float | Sequence[float] | None = None,
        norm_cfg: Mapping = dict(type="BN"),  # noqa: B006 (never changed)
        with_cp: bool = False,
        recompute_ffn: bool | None = None,
        tile: int | None = None,
        init_cfg: Mapping | Sequence[Mapping] | None = None,
    ) -> None:
        super().__init__(init_cfg)
        settings = resolve_arch(arch)
        self.arch = arch if isinstance(arch, str) else dict(arch)
        self.embed_dims, depths = settings["embed_dims"], settings["depths"]
        self.attn_types, specs = resolve_attn_types(attn_types, depths)
        self.recompute_ffn = recompute_ffn
        self.tile = check_tile(tile)
        if drop_path_rate is None:
            drop_path_rate = settings["drop_path_rate"]
        if layer_scale_init is None:
            layer_scale_init = settings["layer_scale_init"]
        scales = per_stage("layer_scale_init", layer_scale_init)
        step = drop_path_rate / max(sum(depths) - 1, 1)

        self.patch_embed = Stem(in_channels, self.embed_dims[0], norm_cfg)
        self.layers = nn.ModuleList()
        for i in range(num_stages):
            dim, heads = self.embed_dims[i], settings["num_heads"][i]
            hidden_dim = int(settings["mlp_ratio"] * dim)
            blocks = [
                Block(
                    dim,
                    attn=build_attention(spec, dim, heads, norm_cfg),
                    ffn=ConvFFN(dim, hidden_dim),
                    drop_path=(sum(depths[:i]) + b) * step,
                    layer_scale_init=scales[i],
                )
                for b, spec in enumerate(specs[i])
            ]
            downsample = None
            if i < num_stages - 1:
                downsample = Downsample(dim, self.embed_dims[i + 1], norm_cfg)
            self.layers.append(Stage(dim, heads, blocks, downsample))
        self.set_grad_checkpointing(with_cp)

    def forward_stages(self, x: Tensor, last: int = NUM_STAGES - 1) -> list[Tensor]:
        """Run stem and stages.

        Args:
            x: Images of shape (B, in_channels, H, W).
            last: Number of the last stage to run, 0 to 3.

        Returns:
            Tokens (B, H_i, W_i, C_i) of each stage, before the step down to the next.
        """
        if not torch.jit.is_scripting():
            tiled = self.forward_tiled(x, last)
            if tiled is not None:
                return tiled
        x = self.patch_embed(x)
        outs = []
        for i, stage in enumerate(self.layers):
            if i <= last:
                x = stage(x)
                outs.append(x)
                if stage.downsample is not None and i < last:
                    x = stage.downsample(x)
        return outs

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Set whether the backward pass recomputes the blocks.

        The feed-forward networks then keep nothing anyway, and do not recompute twice.
        """
        for stage in self.layers:
            stage.with_cp = enable
            for block in stage.blocks:
                block.ffn.recompute = False if enable else self.recompute_ffn


@MODELS.register_module()
class RAVLT(RAVLTEncoder):
    """RAVLT as a backbone for dense prediction.

    The released weights use RALA in stages 1 and 2 and softmax attention in stages 3
    and 4; ``attn_types='rala'`` is the all-linear model, whose cost grows linearly with
    the number of pixels.

    Args:
        arch: ``'t'``, ``'s'``, ``'b'``, ``'l'``, ``'test'``, or a dict (see
            :func:`ravlt.models.archs.resolve_arch`).
        attn_types: Attention of each stage, see :func:`build_attention`; one stands for
            all four, and a list in place of a stage's one gives each block its own.
        in_channels: Channels of the image.
        out_indices: Stages whose output is returned, 0 to 3, at strides 4 to 32;
            stages after the last of them are not built.
        drop_path_rate: Rate of the last block; it rises linearly from 0 at the first.
            None is the arch's.
        layer_scale_init: First value of the layer scales, one number or four. None is
            the arch's.
        norm_cfg: Batch norm of stem and downsampling, 'BN' or 'SyncBN'.
        frozen_stages: -1 freezes nothing, 0 the stem, i the stem and stages 1 to i
            with their output norms and downsampling: no gradient, and eval mode.
        norm_eval: Whether batch norms stay in eval mode during training.
        with_cp: Whether to recompute the blocks in the backward pass, which saves
            memory and costs time; gradients are the same.
        recompute_ffn: Whether to recompute GELU and depthwise convolution of the
            feed-forward networks in the backward pass: 20 % less memory for 5 % more
            time on a CPU (not measured on GPUs). None recomputes on CPUs only. Has no
            effect with ``with_cp``.
        tile: Tokens along a side of the tiles that inference computes in; results are
            the same. None takes tiles of 96 x 96 on CPUs, which are faster, and whole
            grids elsewhere; a number bounds the memory on any device; 0 computes whole
            grids everywhere. Networks with hooks, compiled or foreign parts (FSDP, for
            one) compute whole grids, with a warning if a number was given.
        init_cfg: As in mmengine. ``dict(type='Pretrained', checkpoint=...)`` loads
            strictly and safely, see :func:`ravlt.weights.checkpoint.load_pretrained`.

    Raises:
        RAVLTError: If an argument does not make sense.

    Example:
        >>> model = RAVLT('t', attn_types='rala')
        >>> [tuple(y.shape) for y in model(torch.rand(1, 3, 64, 96))]
        [(1, 64, 16, 24), (1, 128, 8, 12), (1, 256, 4, 6), (1, 512, 2, 3)]
    """

    def __init__(
        self,
        arch: str | Mapping,
        attn_types: AttnTypes = RELEASED_ATTN_TYPES,
        in_channels: int = 3,
        out_indices: Sequence[int] = (0, 1, 2, 3),
        drop_path_rate: float | None = None,
        layer_scale_init: float | Sequence[float] | None = None,
        norm_cfg: Mapping = dict(type="BN"),  # noqa: B006 (never changed)
        frozen_stages: int = -1,
        norm_eval: bool = False,
        with_cp: bool = False,
        tile: int | None = None,
        init_cfg: Mapping | Sequence[Mapping] | None = None,
        recompute_ffn: bool | None = None,
    ) -> None:
        out_indices = check_out_indices(out_indices)
        super().__init__(
            arch,
            attn_types,
            in_channels=in_channels,
            # DDP stops at parameters without a gradient: build only what is used.
            num_stages=out_indices[-1] + 1,
            drop_path_rate=drop_path_rate,
            layer_scale_init=layer_scale_init,
            norm_cfg=norm_cfg,
            with_cp=with_cp,
            recompute_ffn=recompute_ffn,
            tile=tile,
            init_cfg=init_cfg,
        )
        self.out_indices = out_indices
        self.frozen_stages = check_frozen_stages(frozen_stages)
        self.norm_eval = norm_eval
        self.extra_norms = nn.ModuleDict(
            {str(i): ChannelLayerNorm(self.embed_dims[i]) for i in self.out_indices}
        )
        self.apply(init_convolution)
        for part in self._frozen_parts():
            part.requires_grad_(False)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Compute the feature maps.

        Args:
            x: Images of shape (B, in_channels, H, W), any H, W >= 1.

        Returns:
            One tensor for each of ``out_indices``: (B, C_i, ceil(H / s), ceil(W / s))
            with strides s of 4, 8, 16, 32, contiguous.
        """
        tokens = self.forward_stages(x)
        return tuple(
            channels_first(norm(tokens[int(i)])) for i, norm in self.extra_norms.items()
        )

    def init_weights(self) -> None:
        """Apply ``init_cfg``; 'Pretrained' loads strictly and safely."""
        cfgs = self.init_cfg if isinstance(self.init_cfg, list) else [self.init_cfg]
        pretrained = [cfg for cfg in cfgs if cfg and type_name(cfg) == "Pretrained"]
        if not pretrained or self.is_init:
            super().init_weights()
            return
        from ravlt.weights.checkpoint import load_pretrained

        initialize(self, [cfg for cfg in cfgs if cfg not in pretrained])
        for cfg in pretrained:
            load_pretrained(self, cfg["checkpoint"], cfg.get("prefix"))
            if hasattr(self, "_params_init_info"):
                update_init_info(self, f"loaded from {cfg['checkpoint']}")
        self._is_init = True

    def train(self, mode: bool = True) -> "RAVLT":
        """Set the mode, but keep frozen parts (and norms, if asked) in eval mode."""
        super().train(mode)
        if mode:
            for part in self._frozen_parts():
                part.eval()
            if self.norm_eval:
                for module in self.modules():
                    if isinstance(module, _BatchNorm):  # SyncBatchNorm is one, too
                        module.eval()
        return self

    def _frozen_parts(self) -> list[nn.Module]:
        if self.frozen_stages < 0:
            return []
        parts = [self.patch_embed, *self.layers[: self.frozen_stages]]
        return parts + [
            norm for i, norm in self.extra_norms.items() if int(i) < self.frozen_stages
        ]
