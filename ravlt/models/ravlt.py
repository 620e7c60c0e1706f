"""RAVLT, registered once for every OpenMMLab host."""

from collections.abc import Mapping, Sequence

from mmengine.model import BaseModule, initialize, update_init_info
from mmengine.registry import MODELS
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ravlt.checkpoint import load_pretrained, warn_attn_types
from ravlt.errors import RAVLTError

from .archs import NUM_STAGES, per_stage, resolve_arch
from .blocks import Stage
from .layers import ChannelLayerNorm, Stem, to_maps
from .tiling import workspace_for


@MODELS.register_module()
class RAVLT(BaseModule):
    """Rank-Augmented Vision Linear Transformer as a backbone for dense prediction.

    From "Breaking the Low-Rank Dilemma of Linear Attention" (CVPR 2025,
    arXiv 2411.07635). The released weights use RALA in stages 1 and 2 and softmax
    attention in stages 3 and 4; ``attn_types='rala'`` is the all-linear model, whose
    cost grows linearly with the number of pixels.

    Args:
        arch: ``'t'``, ``'s'``, ``'b'``, ``'l'``, ``'test'``, or a dict (see
            :func:`ravlt.models.archs.resolve_arch`).
        attn_types: Attention of each stage; one name stands for all four.
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
            strictly and safely, see :func:`ravlt.checkpoint.load_pretrained`.

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
        attn_types: str | Sequence[str] = ("rala", "rala", "softmax", "softmax"),
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
        super().__init__(init_cfg)
        settings = resolve_arch(arch)
        if drop_path_rate is None:
            drop_path_rate = settings["drop_path_rate"]
        if layer_scale_init is None:
            layer_scale_init = settings["layer_scale_init"]
        layer_scale_init = per_stage("layer_scale_init", layer_scale_init)
        self.arch = arch if isinstance(arch, str) else dict(arch)
        self.attn_types = per_stage("attn_types", attn_types)
        self.embed_dims = settings["embed_dims"]
        self.out_indices = _check_out_indices(out_indices)
        self.frozen_stages = _check_frozen_stages(frozen_stages)
        self.norm_eval = norm_eval
        self.tile = _check_tile(tile)
        self.deployed = False

        dims, depths = self.embed_dims, settings["depths"]
        step = drop_path_rate / max(sum(depths) - 1, 1)
        rates = [j * step for j in range(sum(depths))]
        # Stages and norms that no output needs are not built: DDP stops at parameters
        # without a gradient.
        last = self.out_indices[-1]
        self.patch_embed = Stem(in_channels, dims[0], norm_cfg)
        self.layers = nn.ModuleList(
            Stage(
                dims[i],
                settings["num_heads"][i],
                self.attn_types[i],
                settings["mlp_ratio"],
                rates[sum(depths[:i]) : sum(depths[: i + 1])],
                layer_scale_init[i],
                dims[i + 1] if i < last else None,
                norm_cfg,
                with_cp,
            )
            for i in range(last + 1)
        )
        self.extra_norms = nn.ModuleDict(
            {str(i): ChannelLayerNorm(dims[i]) for i in self.out_indices}
        )
        self.apply(_init_convolution)
        self._register_state_dict_hook(_record_attn_types)
        self._freeze()

    def init_weights(self) -> None:
        """Applies ``init_cfg``; Pretrained goes through our strict, safe loading."""
        cfgs = self.init_cfg if isinstance(self.init_cfg, list) else [self.init_cfg]
        pretrained = [cfg for cfg in cfgs if cfg and cfg["type"] == "Pretrained"]
        if not pretrained or self.is_init:
            super().init_weights()
            return
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
        workspace = workspace_for(self, x, self.tile)
        x = self.patch_embed(x, workspace)
        outs = []
        for i, stage in enumerate(self.layers):
            x = stage(x, workspace)
            if i in self.out_indices:
                outs.append(to_maps(self.extra_norms[str(i)](x)))
            if stage.downsample is not None:
                x = stage.downsample(x)
        return tuple(outs)

    def switch_to_deploy(self) -> "RAVLT":
        """Folds the network into fewer passes for inference, in place; exact.

        Batch norms go into convolutions, scale and shift of layer norms into the next
        product, layer scales into the last one, and the identity of residual depthwise
        convolutions into their kernels. The state dict afterwards lacks the batch
        norms, and holds ones and zeros for what was folded. Calling it again changes
        nothing; training afterwards is an error.

        Returns:
            The model itself, in eval mode.
        """
        self.eval()
        for part in (self.patch_embed, *self.layers):
            part.switch_to_deploy()
        self.deployed = True
        return self

    def train(self, mode: bool = True) -> "RAVLT":
        """Sets the mode, but keeps frozen parts (and norms, if asked) in eval mode.

        Raises:
            RAVLTError: If training is asked of a folded network.
        """
        if mode and self.deployed:
            raise RAVLTError(
                "This RAVLT was folded by switch_to_deploy() and cannot train; build a "
                "new one and load the checkpoint it came from."
            )
        super().train(mode)
        if mode:
            for part in self._frozen_parts():
                part.eval()
            if self.norm_eval:
                for module in self.modules():
                    if isinstance(module, _BatchNorm):  # SyncBatchNorm is one, too
                        module.eval()
        return self

    def extra_repr(self) -> str:
        return f"arch={self.arch!r}, attn_types={self.attn_types}"

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

    def _load_from_state_dict(self, state_dict, prefix, local_metadata, *args) -> None:
        if "attn_types" in local_metadata:
            warn_attn_types(local_metadata["attn_types"], self.attn_types)
        self._check_folded(state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *args)

    def _check_folded(self, state_dict: Mapping, prefix: str) -> None:
        known = f"{prefix}patch_embed.proj.0.weight" in state_dict
        folded = f"{prefix}patch_embed.proj.1.weight" not in state_dict
        if known and folded != self.deployed:
            raise RAVLTError(
                "The state dict was saved after switch_to_deploy(); call that on the "
                "model before loading."
                if folded
                else "The state dict was saved before switch_to_deploy(); load it "
                "before calling that on the model."
            )


def _record_attn_types(model, state_dict, prefix, local_metadata) -> None:
    """Writes the attention types into the metadata of any state dict with a RAVLT.

    PyTorch and mmengine carry this metadata through saving and loading, whatever the
    pipeline, so no hook has to be configured.
    """
    local_metadata["attn_types"] = model.attn_types


def _init_convolution(module: nn.Module) -> None:
    """Truncated normal of 0.02 and zero bias, as in the released code."""
    if isinstance(module, nn.Conv2d):
        nn.init.trunc_normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)


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


def _check_tile(tile: int | None) -> int | None:
    if tile is not None and tile < 0:
        raise RAVLTError(f"tile={tile} is negative; use None, 0 or a number of tokens.")
    return tile
