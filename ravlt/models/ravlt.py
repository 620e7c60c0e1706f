"""RAVLT, registered once for every OpenMMLab host."""

from collections.abc import Mapping, Sequence

from mmengine.model import initialize, update_init_info
from mmengine.registry import MODELS
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ravlt.errors import RAVLTError

from .archs import NUM_STAGES, RELEASED_ATTN_TYPES, AttnTypes
from .layers import ChannelLayerNorm, to_maps
from .trunk import Trunk, init_convolution


@MODELS.register_module()
class RAVLT(Trunk):
    """Rank-Augmented Vision Linear Transformer as a backbone for dense prediction.

    From "Breaking the Low-Rank Dilemma of Linear Attention" (CVPR 2025,
    arXiv 2411.07635). The released weights use RALA in stages 1 and 2 and softmax
    attention in stages 3 and 4; ``attn_types='rala'`` is the all-linear model, whose
    cost grows linearly with the number of pixels.

    Args:
        arch: ``'t'``, ``'s'``, ``'b'``, ``'l'``, ``'test'``, or a dict (see
            :func:`ravlt.models.archs.resolve_arch`).
        attn_types: Attention of each stage, by a name of
            :data:`ravlt.models.attention.CORES` or a dict with options (see
            :func:`ravlt.models.attention.build_attention`); one stands for all four,
            and in place of a stage's one there may be one for each of its blocks.
        in_channels: Channels of the image.
        out_indices: Stages whose output is returned, 0 to 3, at strides 4 to 32;
            stages after the last of them are not built.
        drop_path_rate: Rate of the last block; it rises linearly from 0 at the first.
            None takes the arch's.
        layer_scale_init: First value of the layer scales, one number or four. None
            takes the arch's.
        norm_cfg: Batch norm of stem and downsampling, 'BN' or 'SyncBN'.
        frozen_stages: -1 freezes nothing, 0 the stem, i the stem and stages 1 to i
            with their output norms and downsampling: no gradient, and eval mode.
        norm_eval: Whether batch norms stay in eval mode during training.
        with_cp: Whether to recompute the blocks in the backward pass, which saves
            memory and costs time; gradients are the same.
        tile: Tokens along a side of the tiles that inference computes in, which saves
            time and memory and changes no result. None chooses by device; 0 computes
            whole grids, for hooks that want to see inner layers at full size.
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
    ) -> None:
        out_indices = _check_out_indices(out_indices)
        # Stages and norms that no output needs are not built: DDP stops at parameters
        # without a gradient.
        super().__init__(
            arch,
            attn_types,
            in_channels,
            out_indices[-1] + 1,
            drop_path_rate,
            layer_scale_init,
            norm_cfg,
            with_cp,
            tile,
            init_cfg,
        )
        self.out_indices = out_indices
        self.frozen_stages = _check_frozen_stages(frozen_stages)
        self.norm_eval = norm_eval
        self.extra_norms = nn.ModuleDict(
            {str(i): ChannelLayerNorm(self.embed_dims[i]) for i in out_indices}
        )
        self.apply(init_convolution)
        self._freeze()

    def init_weights(self) -> None:
        """Applies ``init_cfg``; Pretrained goes through our strict, safe loading."""
        cfgs = self.init_cfg if isinstance(self.init_cfg, list) else [self.init_cfg]
        pretrained = [cfg for cfg in cfgs if cfg and cfg["type"] == "Pretrained"]
        if not pretrained or self.is_init:
            super().init_weights()
            return
        # Imported here, so that the models do not need the code that reads weights.
        from ravlt.weights.checkpoint import load_pretrained

        initialize(self, [cfg for cfg in cfgs if cfg not in pretrained])
        for cfg in pretrained:
            load_pretrained(self, cfg["checkpoint"], cfg.get("prefix"))
            if hasattr(self, "_params_init_info"):
                update_init_info(self, f"loaded from {cfg['checkpoint']}")
        self._is_init = True

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Computes the feature maps.

        Args:
            x: Images of shape (B, in_channels, H, W), any H, W >= 1.

        Returns:
            One tensor for each of ``out_indices``: (B, C_i, ceil(H / s), ceil(W / s))
            with strides s of 4, 8, 16, 32, contiguous.
        """
        outs = self.run_stages(x, self._output)
        return tuple(out for out in outs if out is not None)

    def train(self, mode: bool = True) -> "RAVLT":
        """Sets the mode, but keeps frozen parts (and norms, if asked) in eval mode."""
        super().train(mode)
        if mode:
            for part in self._frozen_parts():
                part.eval()
            if self.norm_eval:
                for module in self.modules():
                    if isinstance(module, _BatchNorm):  # SyncBatchNorm is one, too
                        module.eval()
        return self

    def _output(self, stage: int, x: Tensor) -> Tensor | None:
        if stage in self.out_indices:
            return to_maps(self.extra_norms[str(stage)](x))
        return None

    def _freeze(self) -> None:
        for part in self._frozen_parts():
            part.requires_grad_(False)

    def _frozen_parts(self) -> list[nn.Module]:
        if self.frozen_stages < 0:
            return []
        parts = [self.patch_embed, *self.layers[: self.frozen_stages]]
        return parts + [
            norm for i, norm in self.extra_norms.items() if int(i) < self.frozen_stages
        ]


def _check_out_indices(out_indices: Sequence[int]) -> tuple[int, ...]:
    indices = tuple(out_indices)
    if not indices or sorted(set(indices)) != list(indices):
        raise RAVLTError(f"out_indices={indices} must be distinct and rise; sort them.")
    if indices[0] < 0 or indices[-1] >= NUM_STAGES:
        raise RAVLTError(
            f"out_indices={indices} names a stage that does not exist; use 0 to "
            f"{NUM_STAGES - 1}."
        )
    return indices


def _check_frozen_stages(frozen_stages: int) -> int:
    if not -1 <= frozen_stages <= NUM_STAGES:
        raise RAVLTError(
            f"frozen_stages={frozen_stages} is out of range; use -1 (none), 0 (stem) "
            f"or 1 to {NUM_STAGES}."
        )
    return frozen_stages
