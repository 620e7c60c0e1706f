"""Read config files of mmdet and mmseg, and find types and parts in configs."""

import os
from collections.abc import Iterator, Mapping

from mmengine.config import Config
from mmengine.config.lazy import LazyObject
from mmengine.config.utils import MODULE2PACKAGE
from mmengine.registry import MODELS, Registry
from mmengine.utils import get_installed_path, is_installed

from ravlt.errors import RAVLTError

HOSTS = ("mmdet", "mmseg")
LOADERS = ("train_dataloader", "val_dataloader", "test_dataloader")
# Classes that are registered under another name.
_REGISTERED = {"PretrainedInit": "Pretrained", "SyncBatchNorm": "SyncBN"}


def load_config(
    path: str, options: dict | None = None, allow_failed_imports: bool = False
) -> Config:
    """Read a config file, or a config of the hosts by ``mmdet::`` or ``mmseg::``.

    Args:
        path: Path of a file, or for example
            ``mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py``.
        options: Dotted keys and values, as from ``--cfg-options``.
        allow_failed_imports: Whether to read a config even if its ``custom_imports``
            are not installed.

    Returns:
        The config. If it has no ``default_scope``, as pure Python configs, it gets the
        scope of its model.

    Raises:
        RAVLTError: If the config does not exist or has no model.
        ImportError: If one of its ``custom_imports`` fails.
    """
    _find_bases_of_the_forks()
    try:
        if "::" in path:
            from mmengine.hub import get_config

            cfg = get_config(path)
        else:
            cfg = Config.fromfile(path)
    except ImportError:
        if not allow_failed_imports:
            raise
        cfg = Config.fromfile(_find_file(path), import_custom_modules=False)
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
    _restore_classes(cfg._cfg_dict)
    scope = find_scope(cfg)
    if scope:
        cfg.default_scope = scope
    return cfg


def _find_file(path: str) -> str:
    """Return the path of a config file, also for a config of the hosts."""
    host, separator, name = path.partition("::")
    if not separator:
        return path
    return os.path.join(get_installed_path(host), ".mim", "configs", name)


def _restore_classes(node) -> None:
    """Replace full names of classes and functions by the objects.

    A run with a pure Python config writes full names. mmcv and mmdet look up some types
    (NMS, RoIAlign) by short names or objects only.
    """
    if isinstance(node, list | tuple):
        for item in node:
            _restore_classes(item)
    elif isinstance(node, dict):
        for value in dict.values(node):  # values() of a ConfigDict imports classes
            _restore_classes(value)
        kind = dict.get(node, "type")
        # In a name with one dot, the first part is a scope.
        if isinstance(kind, str) and kind.count(".") > 1:
            module, _, name = kind.rpartition(".")
            node["type"] = LazyObject(module, name)


def _find_bases_of_the_forks() -> None:
    # For ``mmseg::``, mmengine and its fork (0.10.12) look for the distribution
    # mmsegmentation. The fork of mmseg has another one, with the same module name.
    if not is_installed("mmsegmentation") and is_installed("mmseg"):
        MODULE2PACKAGE["mmseg"] = "mmseg"


def type_name(part: Mapping, key: str = "type") -> str:
    """Return the registered name of the type of a part of a config.

    Args:
        part: A dict whose ``type`` is a name, with or without a scope
            (``'mmdet.CocoMetric'``), or a class, as in pure Python configs. A config
            that a run writes has the full name of the class
            (``'mmdet.evaluation.CocoMetric'``).
        key: Key of the type.

    Returns:
        The name without scope; empty if there is no type.
    """
    kind = part.get(key) or ""
    name = kind if isinstance(kind, str) else kind.__name__
    name = name.rpartition(".")[2]
    return _REGISTERED.get(name, name)


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


def find_scope(cfg: Config) -> str | None:
    """Return the scope of a config: its own, or the host of its model's class.

    Pure Python configs have no ``default_scope``.
    """
    if cfg.get("default_scope"):
        return cfg["default_scope"]
    kind = find_class(cfg.get("model") or {}, MODELS, None)
    bases = kind.__mro__ if kind else ()
    packages = (base.__module__.partition(".")[0] for base in bases)
    return next((name for name in packages if name in HOSTS), None)


def is_segmentation(cfg: Config) -> bool:
    """Return whether a config is for mmseg, not for mmdet."""
    return find_scope(cfg) == "mmseg"


def find_parts(node) -> Iterator[dict]:
    """Yield each dict of a config, however deep, an outer one before its parts.

    Args:
        node: Any value of a config.
    """
    if isinstance(node, Mapping):
        yield node
        node = list(node.values())
    if isinstance(node, list | tuple):
        for item in node:
            yield from find_parts(item)


def find_datasets(loader: Mapping) -> Iterator[dict]:
    """Yield each innermost dataset config of a dataloader, inside all wrappers."""
    pending = [loader.get("dataset")]
    while pending:
        node = pending.pop()
        if isinstance(node, list | tuple):
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
