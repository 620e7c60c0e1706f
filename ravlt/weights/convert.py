"""Released detectors and segmentors (MMDetection 2, MMSegmentation 0) -> ours."""

from collections.abc import Iterator, Mapping

from mmengine.config import Config
from mmengine.registry import DATASETS, MODELS, DefaultScope
from torch import Tensor, nn

from ravlt.errors import RAVLTError
from ravlt.models import RAVLT
from ravlt.models.archs import RELEASED_ATTN_TYPES, warn_attn_types

from .checkpoint import read_checkpoint, state_dict_of


def convert_released(cfg: Config, path: str) -> dict:
    """Makes a checkpoint of OpenMMLab 2 from a released one, and loads it to be sure.

    The names of tensors are the same, but for output norms: the released networks hold
    one for every stage, ours those that are used. ``meta`` gets the classes and the
    palette under their new names, and the config.

    Args:
        cfg: Config of the model.
        path: The released file.

    Returns:
        ``state_dict`` and ``meta``.

    Raises:
        RAVLTError: If the file cannot be read, or does not fit the config.
    """
    found = read_checkpoint(path)
    state_dict = state_dict_of(found, path)
    tensors = {k.removeprefix("module."): v for k, v in state_dict.items()}
    model = build_without_weights(cfg)
    tensors = _without_unused_norms(tensors, model.backbone)
    _check_fit(path, tensors, model.state_dict())
    model.load_state_dict(tensors)
    warn_attn_types(RELEASED_ATTN_TYPES, model.backbone.attn_types)
    meta = dict(
        dataset_meta=_dataset_meta(cfg, found.get("meta") or {}), cfg=cfg.pretty_text
    )
    return dict(meta=meta, state_dict=model.state_dict())


def build_without_weights(cfg: Config) -> nn.Module:
    """Builds the model of a config that has RAVLT, and loads nothing.

    Args:
        cfg: Config of mmdet or mmseg.

    Raises:
        RAVLTError: If its backbone is another one.
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


def _check_fit(path: str, found: Mapping, wanted: Mapping[str, Tensor]) -> None:
    for kind, keys in _misfits(found, wanted):
        if keys:
            raise RAVLTError(
                f"'{path}' does not fit the config: it {kind} {len(keys)} keys, first "
                f"{min(keys)}; give the config of the same method and size."
            )


def _misfits(
    found: Mapping, wanted: Mapping[str, Tensor]
) -> Iterator[tuple[str, set[str]]]:
    """Yield a verb and the keys that it is true of; each relies on the earlier."""
    yield "lacks", wanted.keys() - found.keys()
    yield "also has", found.keys() - wanted.keys()
    pairs = {key: (found[key], wanted[key]) for key in wanted}
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
    """Classes and palette of the file, or of the config's data set."""
    dataset = cfg.test_dataloader.dataset
    scope = cfg.get("default_scope", "mmdet")
    with DATASETS.switch_scope_and_registry(scope) as registry:
        known = registry.get(dataset.type).METAINFO | dataset.get("metainfo", {})
    result = {}
    for name in ("classes", "palette"):
        value = meta.get(name.upper()) or known.get(name)
        if value is not None:
            result[name] = value
    return result
