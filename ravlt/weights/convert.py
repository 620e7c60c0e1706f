"""Convert released detectors and segmentors to the checkpoint format of OpenMMLab 2.

They were trained with MMDetection 2 and MMSegmentation 0.
"""

from collections.abc import Iterator, Mapping

from mmengine.config import Config
from mmengine.registry import DATASETS, MODELS, DefaultScope
from torch import Tensor, nn

from ravlt.config import find_class
from ravlt.errors import RAVLTError
from ravlt.models import RAVLT
from ravlt.models.archs import RELEASED_ATTN_TYPES, warn_attn_types

from .checkpoint import read_checkpoint, state_dict_of


def convert_released(cfg: Config, path: str) -> dict:
    """Convert a released file, and verify that the config's model loads it.

    Tensor names stay. Output norms of stages that the model does not use are dropped:
    released networks have one for each stage. ``meta`` receives the classes and the
    palette under their new names, and the config.

    Args:
        cfg: Config of the model.
        path: The released file.

    Returns:
        A dict with ``state_dict`` and ``meta``.

    Raises:
        RAVLTError: If the file cannot be read or does not fit the config.
    """
    found = read_checkpoint(path)
    state_dict = state_dict_of(found, path)
    tensors = {k.removeprefix("module."): v for k, v in state_dict.items()}
    model = build_without_weights(cfg)
    tensors = _without_unused_norms(tensors, model.backbone)
    _check_fit(path, tensors, model.state_dict())
    model.load_state_dict(tensors)
    warn_attn_types(RELEASED_ATTN_TYPES, model.backbone.attn_types)
    meta = found.get("meta")
    meta = meta if isinstance(meta, Mapping) else {}
    return dict(
        meta=dict(dataset_meta=_dataset_meta(cfg, meta), cfg=cfg.pretty_text),
        state_dict=model.state_dict(),
    )


def build_without_weights(cfg: Config) -> nn.Module:
    """Build the model of a config without loading weights.

    Args:
        cfg: Config of an mmdet or mmseg model whose backbone is RAVLT.

    Raises:
        RAVLTError: If the backbone is not RAVLT.
    """
    with DefaultScope.overwrite_default_scope(cfg.get("default_scope", "mmdet")):
        model = MODELS.build(cfg.model)
    if not isinstance(getattr(model, "backbone", None), RAVLT):
        raise RAVLTError(
            f"model.backbone of the config is "
            f"{type(getattr(model, 'backbone', None)).__name__}, not RAVLT; give the "
            f"config of a RAVLT model."
        )
    return model


def _without_unused_norms(
    tensors: Mapping[str, Tensor], backbone: RAVLT
) -> dict[str, Tensor]:
    unused = tuple(
        f"backbone.extra_norms.{i}."
        for i in range(len(backbone.embed_dims))
        if i not in backbone.out_indices
    )
    return {k: v for k, v in tensors.items() if not k.startswith(unused)}


def _check_fit(path: str, found: Mapping, expected: Mapping[str, Tensor]) -> None:
    for difference, keys in _differences(found, expected):
        if keys:
            raise RAVLTError(
                f"'{path}' does not fit the config: it {difference} {len(keys)} keys, "
                f"first {min(keys)}; give the config of the same method and size."
            )


def _differences(
    found: Mapping, expected: Mapping[str, Tensor]
) -> Iterator[tuple[str, set[str]]]:
    """Yield each kind of difference with its keys; stop at the first that has any."""
    yield "lacks", expected.keys() - found.keys()
    yield "also has", found.keys() - expected.keys()
    pairs = {key: (found[key], expected[key]) for key in expected}
    yield (
        "has no tensor for",
        {key for key, (a, _) in pairs.items() if not isinstance(a, Tensor)},
    )
    yield (
        "has another shape for",
        {key for key, (a, b) in pairs.items() if a.shape != b.shape},
    )
    yield (
        "has another kind of dtype (integer or floating-point) for",
        {
            key
            for key, (a, b) in pairs.items()
            if a.is_floating_point() != b.is_floating_point()
        },
    )


def _dataset_meta(cfg: Config, meta: Mapping) -> dict:
    """Return classes and palette of the file, or else of the config's data set."""
    dataset = cfg.test_dataloader.dataset
    scope = cfg.get("default_scope", "mmdet")
    kind = find_class(dataset, DATASETS, scope)
    known = kind.METAINFO | dataset.get("metainfo", {})
    result = {}
    for name in ("classes", "palette"):
        value = meta.get(name.upper()) or known.get(name)
        if value is not None:
            result[name] = value
    return result
