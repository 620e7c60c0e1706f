"""The ImageNet classifier, registered with timm as ``ravlt_t`` to ``ravlt_l``.

``ravlt_t_linear`` and so on have RALA in all four stages. ``import ravlt`` registers
them, for ``timm.create_model`` and for mmseg's ``TIMMBackbone`` alike.
"""

from collections.abc import Mapping, Sequence

from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers import SelectAdaptivePool2d
from timm.models import (
    build_model_with_cfg,
    generate_default_cfgs,
    register_model,
    register_notrace_module,
)
from timm.models._features import feature_take_indices
from timm.models._manipulate import MATCH_PREV_GROUP
from torch import Tensor, nn

from ravlt.errors import RAVLTError
from ravlt.ops.layout import channels_first

from .archs import RELEASED_ATTN_TYPES, AttnTypes
from .attention import CORES
from .layers import DepthwiseConv, PointwiseConv, init_convolution
from .ravlt import RAVLTEncoder

# Leaves of torch.fx graphs: their operators choose a form when they run.
for _module in (PointwiseConv, DepthwiseConv, *CORES.values()):
    register_notrace_module(_module)

_WEIGHTS = "https://huggingface.co/aldjalkdf/RAVLT/resolve/main/RAVLT_{}.pth"
_HEAD_WIDTH = 1024


class RAVLTClassifier(RAVLTEncoder):
    """RAVLT with its ImageNet head, with the interface of a timm model.

    After the stages: a 1 x 1 convolution to 1024 channels, batch norm, SiLU, pooling
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
            in_channels=in_chans,
            drop_path_rate=drop_path_rate,
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
        self.head = self._build_head(num_classes)
        self.apply(init_convolution)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_chans, H, W) -> class scores (B, num_classes)."""
        return self.forward_head(self.forward_features(x))

    def forward_features(self, x: Tensor) -> Tensor:
        """(B, in_chans, H, W) -> (B, 1024, ceil(H / 32), ceil(W / 32))."""
        return self._tail(self.forward_stages(x)[-1])

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Pool and classify.

        Args:
            x: The result of :meth:`forward_features`.
            pre_logits: Whether to leave out the classifier.

        Returns:
            (B, num_classes), or (B, 1024); with the grid if there is no pooling.
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
        """Compute the outputs of stages.

        Args:
            x: Images of shape (B, in_chans, H, W).
            indices: Stages; a number stands for as many of the last ones, None for all.
            norm: Whether the last stage's output goes through the layers up to the
                pooling, among them the only norm after the stages; it then has 1024
                channels.
            stop_early: Whether to stop after the last stage asked for.
            output_fmt: 'NCHW' (contiguous) or 'NHWC'.
            intermediates_only: Whether to leave out the last features.

        Returns:
            The outputs; unless ``intermediates_only``, after the result of
            :meth:`forward_features` for the same images (with ``stop_early`` after the
            last stage that ran).

        Raises:
            RAVLTError: If the format is another one.
        """
        if output_fmt not in ("NCHW", "NHWC"):
            raise RAVLTError(f"output_fmt='{output_fmt}' is not 'NCHW' or 'NHWC'.")
        wanted, last = feature_take_indices(len(self.layers), indices)
        final = len(self.layers) - 1
        tokens = self.forward_stages(x, last if stop_early else final)
        taken = []
        for i in sorted(wanted):
            if norm and i == final:
                out = self._tail(tokens[i])
                taken.append(out if output_fmt == "NCHW" else out.permute(0, 2, 3, 1))
            elif output_fmt == "NCHW":
                taken.append(channels_first(tokens[i]))
            else:
                taken.append(tokens[i])
        if intermediates_only:
            return taken
        if len(tokens) <= final:
            return channels_first(tokens[-1]), taken
        return self._tail(tokens[-1]), taken

    def prune_intermediate_layers(
        self,
        indices: int | Sequence[int] = 1,
        prune_norm: bool = False,
        prune_head: bool = True,
    ) -> list[int]:
        """Remove layers that the outputs of some stages do not need.

        Without the last stage the layers up to the pooling and the classifier fit no
        more and are removed in any case; :meth:`reset_classifier` builds a new one.

        Args:
            indices: As in :meth:`forward_intermediates`.
            prune_norm: Whether to remove the layers between stages and pooling.
            prune_head: Whether to remove the classifier and the pooling.

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
        if prune_head:
            self.reset_classifier(0, "")
        elif prune_norm or shortened:
            self.reset_classifier(0)
        return taken

    def get_classifier(self) -> nn.Module:
        """Return the last layer."""
        return self.head

    def reset_classifier(
        self, num_classes: int, global_pool: str | None = None
    ) -> None:
        """Replace the last layer for other classes, and the pooling if given."""
        self.num_classes = num_classes
        if global_pool is not None:
            self.global_pool = SelectAdaptivePool2d(pool_type=global_pool)
        # Drawn in float32: in half precision PyTorch draws far too large weights.
        head = self._build_head(num_classes).apply(init_convolution)
        self.head = head.to(next(self.parameters()))

    def no_weight_decay(self) -> set[str]:
        """Return the names of layer scales, which decay would pull towards zero."""
        return {n for n, _ in self.named_parameters() if ".gamma_" in n}

    def group_matcher(self, coarse: bool = False) -> dict:
        """Return timm's patterns for layer-wise learning rates.

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

    def _tail(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, 1024, H, W)."""
        return self.act(self.norm(channels_first(self.proj(x))))

    def _build_head(self, num_classes: int) -> nn.Module:
        if not num_classes:
            return nn.Identity()
        return nn.Conv2d(self.num_features, num_classes, 1)


def _filter(checkpoint: Mapping, model: RAVLTClassifier) -> dict[str, Tensor]:
    """Return the tensors of a published file, without the dicts around them."""
    # Imported here, so that the models do not need the code that reads weights.
    from ravlt.weights.checkpoint import backbone_state_dict

    cfg = model.pretrained_cfg
    return backbone_state_dict(checkpoint, cfg.get("file") or cfg["url"])[0]


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
        # The authors published their code and weights without a license.
        license="unknown" if url else "apache-2.0",
    )


# No trained weights of the all-linear models are available.
default_cfgs = generate_default_cfgs(
    {f"ravlt_{size}.in1k": _cfg(_WEIGHTS.format(size.upper())) for size in "tsbl"}
    | {f"ravlt_{size}_linear.untrained": _cfg("") for size in "tsbl"}
)


def _create(name: str, pretrained: bool, **kwargs) -> RAVLTClassifier:
    if kwargs.get("feature_cls", "getter") != "getter":
        raise RAVLTError(
            f"feature_cls='{kwargs['feature_cls']}' would return other tensors than "
            f"the feature maps of {name}; leave it out, or use 'getter'."
        )
    return build_model_with_cfg(
        RAVLTClassifier,
        name,
        pretrained,
        pretrained_filter_fn=_filter,
        feature_cfg=dict(out_indices=(0, 1, 2, 3), feature_cls="getter"),
        **kwargs,
    )


@register_model
def ravlt_t(pretrained: bool = False, **kwargs) -> RAVLTClassifier:
    """RAVLT-T with the released attention."""
    return _create("ravlt_t", pretrained, **dict(arch="t") | kwargs)


@register_model
def ravlt_s(pretrained: bool = False, **kwargs) -> RAVLTClassifier:
    """RAVLT-S with the released attention."""
    return _create("ravlt_s", pretrained, **dict(arch="s") | kwargs)


@register_model
def ravlt_b(pretrained: bool = False, **kwargs) -> RAVLTClassifier:
    """RAVLT-B with the released attention."""
    return _create("ravlt_b", pretrained, **dict(arch="b") | kwargs)


@register_model
def ravlt_l(pretrained: bool = False, **kwargs) -> RAVLTClassifier:
    """RAVLT-L with the released attention."""
    return _create("ravlt_l", pretrained, **dict(arch="l") | kwargs)


@register_model
def ravlt_t_linear(pretrained: bool = False, **kwargs) -> RAVLTClassifier:
    """RAVLT-T with RALA in all stages."""
    args = dict(arch="t", attn_types="rala") | kwargs
    return _create("ravlt_t_linear", pretrained, **args)


@register_model
def ravlt_s_linear(pretrained: bool = False, **kwargs) -> RAVLTClassifier:
    """RAVLT-S with RALA in all stages."""
    args = dict(arch="s", attn_types="rala") | kwargs
    return _create("ravlt_s_linear", pretrained, **args)


@register_model
def ravlt_b_linear(pretrained: bool = False, **kwargs) -> RAVLTClassifier:
    """RAVLT-B with RALA in all stages."""
    args = dict(arch="b", attn_types="rala") | kwargs
    return _create("ravlt_b_linear", pretrained, **args)


@register_model
def ravlt_l_linear(pretrained: bool = False, **kwargs) -> RAVLTClassifier:
    """RAVLT-L with RALA in all stages."""
    args = dict(arch="l", attn_types="rala") | kwargs
    return _create("ravlt_l_linear", pretrained, **args)
