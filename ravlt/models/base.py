"""What checkpoints, mmengine and inference ask of a RAVLT, apart from its mathematics.

Inference is a floor above the models: its functions are imported when they are called.
"""

from collections.abc import Mapping

from mmengine.model import BaseModule
from torch import Tensor

from ravlt.errors import RAVLTError

from .archs import warn_attn_types

# Written into folded state dicts. Version 0.1 folded identities into kernels as well
# and wrote no number.
_FOLD_FORMAT = 2


class BaseRAVLT(BaseModule):
    """State dicts that know their attention, folding, and depths of parameters.

    Subclasses set ``attn_types`` and build ``layers``.

    Args:
        init_cfg: As in mmengine.
    """

    # TorchScript compiles properties, and mmengine's setter has no types.
    __jit_unused_properties__ = ("is_init",)

    def __init__(self, init_cfg: Mapping | list | None = None) -> None:
        super().__init__(init_cfg)
        self.deployed = False
        self._register_state_dict_hook(_record_metadata)

    def switch_to_deploy(self) -> "BaseRAVLT":
        """Fold the network for inference; see :func:`ravlt.switch_to_deploy`.

        Returns:
            The model itself, in eval mode.
        """
        from ravlt.inference.fold import fold

        return fold(self)

    def forward_tiled(self, x: Tensor, last: int) -> list[Tensor] | None:
        """Run stem and stages tile by tile, if that applies to this input.

        Returns:
            As ``forward_stages``; None where the plain forward pass has to compute.
        """
        from ravlt.inference.tiled import forward_tiled

        return forward_tiled(self, x, last)

    def train(self, mode: bool = True) -> "BaseRAVLT":
        """Set the mode.

        Raises:
            RAVLTError: If a folded network is to be trained.
        """
        if mode and self.deployed:
            raise RAVLTError(
                "This RAVLT was folded by switch_to_deploy() and cannot train; build a "
                "new one and load the checkpoint it came from."
            )
        return super().train(mode)

    def get_layer_depth(self, name: str, prefix: str = "") -> tuple[int, int]:
        """Return how deep a parameter lies, for layer-wise decay of the learning rate.

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

    def extra_repr(self) -> str:
        return f"arch={self.arch!r}, attn_types={self.attn_types}"

    def _load_from_state_dict(self, state_dict, prefix, local_metadata, *args) -> None:
        if "attn_types" in local_metadata:
            warn_attn_types(local_metadata["attn_types"], self.attn_types)
        self.check_folds(state_dict, prefix, local_metadata)
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *args)

    def check_folds(
        self, state_dict: Mapping, prefix: str, local_metadata: Mapping
    ) -> None:
        """Refuse a state dict that is not folded as this model is.

        Args:
            state_dict: The state dict; one without this model's stem passes.
            prefix: Prefix of this model's keys in it.
            local_metadata: Metadata of this model in it.

        Raises:
            RAVLTError: If only one of both is folded, or another version folded it.
        """
        if f"{prefix}patch_embed.proj.0.weight" not in state_dict:
            return
        folded = f"{prefix}patch_embed.proj.1.weight" not in state_dict
        if folded != self.deployed:
            raise RAVLTError(
                "The state dict was saved after switch_to_deploy(); call that on the "
                "model before loading."
                if folded
                else "The state dict was saved before switch_to_deploy(); load it "
                "before calling that on the model."
            )
        # Without any metadata nobody can say which version folded it.
        recorded = "attn_types" in local_metadata
        if folded and recorded and local_metadata.get("folds") != _FOLD_FORMAT:
            raise RAVLTError(
                "The state dict was folded by ravlt 0.1, which also changed the "
                "kernels of residual convolutions; load the checkpoint that it was "
                "made from and call switch_to_deploy() again."
            )


def _record_metadata(model, state_dict, prefix, local_metadata) -> None:
    """Write attention types and folds into the metadata of a state dict.

    PyTorch and mmengine carry this metadata through saving and loading, whatever the
    pipeline, so no hook has to be configured.
    """
    local_metadata["attn_types"] = model.attn_types
    if model.deployed:
        local_metadata["folds"] = _FOLD_FORMAT
