"""The ImageNet classifier, registered with timm as ``ravlt_t`` to ``ravlt_l``.

``ravlt_t_linear`` and so on have RALA in all four stages. ``import ravlt`` registers
them, for ``timm.create_model`` and for mmseg's ``TIMMBackbone`` alike.
"""

from collections.abc import Mapping, Sequence

from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers import SelectAdaptivePool2d
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models._features import feature_take_indices
from timm.models._manipulate import MATCH_PREV_GROUP
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ravlt.errors import RAVLTError

from .archs import NUM_STAGES, RELEASED_ATTN_TYPES, AttnTypes
from .depthwise import to_image
from .layers import PointwiseConv, fold_batch_norm
from .trunk import Trunk, init_convolution

_WEIGHTS = "https://huggingface.co/aldjalkdf/RAVLT/resolve/main/RAVLT_{}.pth"
_HEAD_WIDTH = 1024


class RAVLTClassifier(Trunk):
    """RAVLT with its ImageNet head, in the form of a timm model.

    Behind the stages: a 1 x 1 convolution to 1024 channels, batch norm, SiLU, pooling
    and a linear classifier (kept as a 1 x 1 convolution, as released).

    Args:
        arch: Size or dict, see :class:`ravlt.models.RAVLT`.
        attn_types: Attention, see :class:`ravlt.models.RAVLT`.
        num_classes: Classes; 0 for none.
        in_chans: Channels of the image.
        global_pool: A pooling of timm; '' for none.
        drop_rate: Dropout before the classifier.
        drop_path_rate: Rate of the last block; None takes the arch's.
        tile: As in :class:`ravlt.models.RAVLT`.

    Raises:
        RAVLTError: If an argument does not make sense.
    """

    def __init__(
        self,
        arch: str | Mapping,
        attn_types: AttnTypes = RELEASED_ATTN_TYPES,
        num_classes: int = 1000,
        in_chans: int = 3,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        drop_path_rate: float | None = None,
        tile: int | None = None,
    ) -> None:
        super().__init__(
            arch,
            attn_types,
            in_chans,
            NUM_STAGES,
            drop_path_rate,
            layer_scale_init=None,
            norm_cfg=dict(type="BN"),
            with_cp=False,
            tile=tile,
        )
        self.num_classes = num_classes
        self.num_features = self.head_hidden_size = _HEAD_WIDTH
        self.feature_info = [
            dict(num_chs=dim, reduction=4 * 2**i, module=f"layers.{i}")
            for i, dim in enumerate(self.embed_dims)
        ]
        self.proj = PointwiseConv(self.embed_dims[-1], _HEAD_WIDTH)
        self.norm = nn.BatchNorm2d(_HEAD_WIDTH)
        self.act = nn.SiLU()
        self.global_pool = SelectAdaptivePool2d(pool_type=global_pool)
        self.drop = nn.Dropout(drop_rate)
        self.head = _head(num_classes)
        self.apply(init_convolution)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_chans, H, W) -> class scores (B, num_classes)."""
        return self.forward_head(self.forward_features(x))

    def forward_features(self, x: Tensor) -> Tensor:
        """(B, in_chans, H, W) -> (B, 1024, ceil(H / 32), ceil(W / 32))."""
        return self._tail(self.run_stages(x, lambda stage, tokens: tokens)[-1])

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Pools and classifies.

        Args:
            x: What :meth:`forward_features` gave.
            pre_logits: Whether to leave out the classifier.

        Returns:
            (B, num_classes), or (B, 1024); the grid is kept if nothing pools.
        """
        x = self.drop(self.global_pool(x))
        if not pre_logits:
            x = self.head(x)
        return x if self.global_pool.is_identity() else x.flatten(1)

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | Sequence[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """Gives the outputs of stages.

        Args:
            x: Images of shape (B, in_chans, H, W).
            indices: Stages; a number stands for as many of the last ones, None for all.
            norm: Of timm's interface; stages have no norm of their own here.
            stop_early: Of timm's interface; pruning does it.
            output_fmt: 'NCHW' or 'NHWC'.
            intermediates_only: Whether to leave out the last features.

        Returns:
            The outputs, after :meth:`forward_features` of the same images if asked for.

        Raises:
            RAVLTError: If the format is another one.
        """
        if output_fmt not in ("NCHW", "NHWC"):
            raise RAVLTError(f"output_fmt='{output_fmt}' is not 'NCHW' or 'NHWC'.")
        wanted, _ = feature_take_indices(len(self.layers), indices)
        outs = self.run_stages(x, lambda stage, tokens: tokens)
        taken = [out for i, out in enumerate(outs) if i in wanted]
        if output_fmt == "NCHW":
            taken = [to_image(out) for out in taken]
        return taken if intermediates_only else (self._tail(outs[-1]), taken)

    def prune_intermediate_layers(
        self,
        indices: int | Sequence[int] = 1,
        prune_norm: bool = False,
        prune_head: bool = True,
    ) -> list[int]:
        """Drops what the outputs of some stages do not need.

        Args:
            indices: As in :meth:`forward_intermediates`.
            prune_norm: Whether to drop what is between stages and pooling.
            prune_head: Whether to drop the classifier.

        Returns:
            The stages.
        """
        taken, last = feature_take_indices(len(self.layers), indices)
        shortened = last < len(self.layers) - 1
        self.layers = self.layers[: last + 1]
        self.layers[-1].downsample = None
        if prune_norm or shortened:
            self.proj, self.norm, self.act = (nn.Identity() for _ in range(3))
            self.num_features = self.head_hidden_size = self.embed_dims[last]
        if prune_head or shortened:
            self.reset_classifier(0, "")
        return taken

    def get_classifier(self) -> nn.Module:
        """The last layer."""
        return self.head

    def reset_classifier(
        self, num_classes: int, global_pool: str | None = None
    ) -> None:
        """Replaces the last layer for other classes, and the pooling if given."""
        self.num_classes = num_classes
        if global_pool is not None:
            self.global_pool = SelectAdaptivePool2d(pool_type=global_pool)
        self.head = _head(num_classes).to(next(self.parameters()))
        self.head.apply(init_convolution)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Sets whether the backward pass recomputes the blocks."""
        for stage in self.layers:
            stage.with_cp = enable

    def no_weight_decay(self) -> set[str]:
        """Names the layer scales, which decay would pull towards zero."""
        return {n for n, _ in self.named_parameters() if ".gamma_" in n}

    def group_matcher(self, coarse: bool = False) -> dict:
        """Gives timm's patterns for layer-wise learning rates.

        Args:
            coarse: Whether a stage is one group.
        """
        blocks = [
            (r"^layers\.(\d+)\.downsample", MATCH_PREV_GROUP),
            (r"^layers\.(\d+)\.blocks\.(\d+)", None),
            (r"^(?:proj|norm)\.", MATCH_PREV_GROUP),
        ]
        stages = r"^layers\.(\d+)"
        return dict(stem=r"^patch_embed", blocks=stages if coarse else blocks)

    def switch_to_deploy(self) -> "RAVLTClassifier":
        """Also folds the batch norm before the pooling; see :class:`Trunk`."""
        super().switch_to_deploy()
        if isinstance(self.norm, _BatchNorm):
            self.norm = fold_batch_norm(self.proj, self.norm)
        return self

    def _tail(self, x: Tensor) -> Tensor:
        return self.act(self.norm(to_image(self.proj(x))))


def _head(num_classes: int) -> nn.Module:
    if not num_classes:
        return nn.Identity()
    return nn.Conv2d(_HEAD_WIDTH, num_classes, 1)


def _filter(checkpoint: Mapping, model: RAVLTClassifier) -> dict[str, Tensor]:
    """Return the tensors of a published file, without the dicts around them."""
    # Imported here, so that the models do not need the code that reads weights.
    from ravlt.weights.checkpoint import backbone_state_dict

    return backbone_state_dict(checkpoint, model.pretrained_cfg["url"])[0]


def _cfg(url: str) -> dict:
    return dict(
        url=url,
        num_classes=1000,
        input_size=(3, 224, 224),
        pool_size=(7, 7),
        crop_pct=0.875,
        interpolation="bicubic",
        fixed_input_size=False,
        mean=IMAGENET_DEFAULT_MEAN,
        std=IMAGENET_DEFAULT_STD,
        first_conv="patch_embed.proj.0",
        classifier="head",
        paper_ids="arXiv:2411.07635",
        paper_name="Breaking the Low-Rank Dilemma of Linear Attention",
    )


# Nobody has published weights of the all-linear models.
default_cfgs = generate_default_cfgs(
    {f"ravlt_{size}.in1k": _cfg(_WEIGHTS.format(size.upper())) for size in "tsbl"}
    | {f"ravlt_{size}_linear.untrained": _cfg("") for size in "tsbl"}
)


def _register(size: str, suffix: str, attn_types: str | Sequence[str]) -> None:
    def create(pretrained: bool = False, **kwargs) -> RAVLTClassifier:
        return build_model_with_cfg(
            RAVLTClassifier,
            create.__name__,
            pretrained,
            pretrained_filter_fn=_filter,
            feature_cfg=dict(out_indices=(0, 1, 2, 3), feature_cls="getter"),
            **dict(arch=size, attn_types=attn_types) | kwargs,
        )

    create.__name__ = f"ravlt_{size}{suffix}"
    register_model(create)


for _size in "tsbl":
    _register(_size, "", RELEASED_ATTN_TYPES)
    _register(_size, "_linear", "rala")
