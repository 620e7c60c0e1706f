"""What RAVLT's backbone and classifier share: stem, stages, folds, loading."""

from collections.abc import Callable, Mapping, Sequence

from mmengine.model import BaseModule
from torch import Tensor, nn

from ravlt.errors import RAVLTError

from .archs import AttnTypes, per_block, per_stage, resolve_arch, warn_attn_types
from .attention import plain_spec
from .blocks import Stage
from .layers import Stem
from .tiling import workspace_for


class Trunk(BaseModule):
    """Stem and stages.

    Args:
        arch: See :func:`ravlt.models.archs.resolve_arch`.
        attn_types: Attention, see :class:`RAVLT`.
        in_channels: Channels of the image.
        num_stages: How many stages are built, from the first.
        drop_path_rate: Rate of the last block; None takes the arch's.
        layer_scale_init: One number or four; None takes the arch's.
        norm_cfg: Batch norm of stem and downsampling, 'BN' or 'SyncBN'.
        with_cp: Whether to recompute the blocks in the backward pass.
        tile: Tokens along a side of a tile, see :class:`RAVLT`.
        init_cfg: As in mmengine.

    Raises:
        RAVLTError: If an argument does not make sense.
    """

    def __init__(
        self,
        arch: str | Mapping,
        attn_types: AttnTypes,
        in_channels: int,
        num_stages: int,
        drop_path_rate: float | None,
        layer_scale_init: float | Sequence[float] | None,
        norm_cfg: Mapping,
        with_cp: bool,
        tile: int | None,
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
        attn_types = per_stage("attn_types", attn_types)
        specs = [
            tuple(map(plain_spec, stage))
            for stage in per_block("attn_types", attn_types, settings["depths"])
        ]
        # As short as it can be said: a stage of one mechanism by that.
        self.attn_types = tuple(
            stage[0] if all(spec == stage[0] for spec in stage) else stage
            for stage in specs
        )
        self.embed_dims = settings["embed_dims"]
        self.tile = _check_tile(tile)
        self.deployed = False

        dims, depths = self.embed_dims, settings["depths"]
        step = drop_path_rate / max(sum(depths) - 1, 1)
        rates = [j * step for j in range(sum(depths))]
        self.patch_embed = Stem(in_channels, dims[0], norm_cfg)
        self.layers = nn.ModuleList(
            Stage(
                dims[i],
                settings["num_heads"][i],
                specs[i],
                settings["mlp_ratio"],
                rates[sum(depths[:i]) : sum(depths[: i + 1])],
                layer_scale_init[i],
                dims[i + 1] if i < num_stages - 1 else None,
                norm_cfg,
                with_cp,
            )
            for i in range(num_stages)
        )
        self._register_state_dict_hook(_record_attn_types)

    def run_stages(self, x: Tensor, output: Callable[[int, Tensor], object]) -> list:
        """Runs stem and stages.

        Args:
            x: Images of shape (B, in_channels, H, W).
            output: Called with the number of each stage, 0 to 3, and its tokens of
                shape (B, H_i, W_i, C_i), before the step down to the next stage.

        Returns:
            What ``output`` gave, stage by stage.
        """
        workspace = workspace_for(self, x, self.tile)
        x = self.patch_embed(x, workspace)
        outs = []
        for i, stage in enumerate(self.layers):
            x = stage(x, workspace)
            outs.append(output(i, x))
            if stage.downsample is not None:
                x = stage.downsample(x)
        return outs

    def get_layer_depth(self, name: str, prefix: str = "") -> tuple[int, int]:
        """Says how deep a parameter lies, for layer-wise decay of the learning rate.

        Args:
            name: Name of the parameter.
            prefix: What precedes the backbone's own names in it.

        Returns:
            Its layer (0: the stem, then the blocks; a downsampling belongs to the
            block before it; output norms and heads are the last one), and the number
            of layers.
        """
        depths = [len(stage.blocks) for stage in self.layers]
        num_layers = sum(depths) + 2
        kind, *path = name.removeprefix(prefix).split(".")
        if kind == "patch_embed":
            return 0, num_layers
        if kind != "layers":
            return num_layers - 1, num_layers
        stage = int(path[0])
        block = int(path[2]) if path[1] == "blocks" else depths[stage] - 1
        return 1 + sum(depths[:stage]) + block, num_layers

    def switch_to_deploy(self) -> "Trunk":
        """Folds the network into fewer passes for inference, in place; exact.

        Batch norms go into convolutions, scale and shift of layer norms into the next
        product, layer scales into the last one, the identity of residual depthwise
        convolutions into their kernels, and in attention cores what they can fold. The
        state dict afterwards lacks the batch norms, and holds ones and zeros for what
        was folded. Calling it again changes nothing; training afterwards is an error.

        Returns:
            The model itself, in eval mode.
        """
        self.eval()
        for part in (self.patch_embed, *self.layers):
            part.switch_to_deploy()
        self.deployed = True
        return self

    def train(self, mode: bool = True) -> "Trunk":
        """Sets the mode.

        Raises:
            RAVLTError: If training is asked of a folded network.
        """
        if mode and self.deployed:
            raise RAVLTError(
                "This RAVLT was folded by switch_to_deploy() and cannot train; build a "
                "new one and load the checkpoint it came from."
            )
        return super().train(mode)

    def extra_repr(self) -> str:
        return f"arch={self.arch!r}, attn_types={self.attn_types}"

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


def init_convolution(module: nn.Module) -> None:
    """Truncated normal of 0.02 and zero bias, as in the released code."""
    if isinstance(module, nn.Conv2d):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def _check_tile(tile: int | None) -> int | None:
    if tile is not None and tile < 0:
        raise RAVLTError(f"tile={tile} is negative; use None, 0 or a number of tokens.")
    return tile
