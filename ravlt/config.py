"""Read configs of mmdet and mmseg: files, and what stands where in them."""

import os
from collections.abc import Iterator, Mapping

from mmengine.config import Config
from mmengine.config.utils import MODULE2PACKAGE
from mmengine.registry import Registry
from mmengine.utils import is_installed

from ravlt.errors import RAVLTError

LOADERS = ("train_dataloader", "val_dataloader", "test_dataloader")


def load_config(path: str, options: dict | None = None) -> Config:
    """Reads a config file, or one of the hosts by ``mmdet::`` or ``mmseg::``.

    Args:
        path: A file, or e.g. ``mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py``.
        options: Changes in the form of ``--cfg-options``.

    Raises:
        RAVLTError: If there is no such config, or it has no model.
    """
    _find_bases_of_the_forks()
    try:
        if "::" in path:
            from mmengine.hub import get_config

            cfg = get_config(path)
        else:
            cfg = Config.fromfile(path)
    except FileNotFoundError as error:
        if os.path.isfile(path):
            raise RAVLTError(
                f"Config '{path}' inherits what is not there ({error}); correct its "
                f"_base_."
            ) from error
        raise RAVLTError(
            f"Config '{path}' does not exist; correct the path."
        ) from error
    if options:
        cfg.merge_from_dict(options)
    if "model" not in cfg:
        raise RAVLTError(f"Config '{path}' has no model; give the config of a run.")
    return cfg


def _find_bases_of_the_forks() -> None:
    # mmengine asks for the distribution that holds ``mmseg::``, and its fork (0.10.12)
    # still for the original's. The module has the same name in both.
    if not is_installed("mmsegmentation") and is_installed("mmseg"):
        MODULE2PACKAGE["mmseg"] = "mmseg"


def type_name(part: Mapping) -> str:
    """Return the class name of a part of a config.

    Args:
        part: A dict whose ``type`` is a name, with or without a scope
            (``'mmdet.CocoMetric'``), or a class, as in configs in pure Python.

    Returns:
        The name without scope; empty if there is no type.
    """
    kind = part.get("type") or ""
    name = kind if isinstance(kind, str) else kind.__name__
    return name.rpartition(".")[2]


def find_class(part: Mapping, registry: Registry, scope: str | None) -> type | None:
    """Return the class of a part of a config.

    Args:
        part: A dict whose ``type`` is a name or a class.
        registry: Root registry of the part.
        scope: Host in which names without scope are looked up.

    Returns:
        The class; None if there is no such class.
    """
    kind = part.get("type")
    if isinstance(kind, str):
        with registry.switch_scope_and_registry(scope) as host:
            kind = host.get(kind)
    return kind


def is_segmentation(cfg: Config) -> bool:
    """Return whether a config is one of mmseg, not of mmdet."""
    return cfg.get("default_scope") == "mmseg"


def find_datasets(loader: Mapping) -> Iterator[dict]:
    """Yield each innermost dataset config of a dataloader, whatever wraps it."""
    pending = [loader.get("dataset")]
    while pending:
        node = pending.pop()
        if isinstance(node, list):
            pending.extend(node)
        elif isinstance(node, dict):
            wrapped = [node[k] for k in ("dataset", "datasets") if k in node]
            pending.extend(wrapped)
            if not wrapped:
                yield node


def find_evaluators(cfg: Config, split: str) -> list[dict]:
    """Return the evaluators of a split, ``'val'`` or ``'test'``."""
    evaluators = cfg.get(f"{split}_evaluator") or []
    return list(evaluators) if isinstance(evaluators, list | tuple) else [evaluators]
