"""Read configs of mmdet and mmseg: files, and what stands where in them."""

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
    """Reads a config file, or one of the hosts by ``mmdet::`` or ``mmseg::``.

    Args:
        path: A file, or e.g. ``mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py``.
        options: Changes in the form of ``--cfg-options``.
        allow_failed_imports: Also read a config whose ``custom_imports`` are not
            installed, to change it.

    Returns:
        The config. If it has no ``default_scope``, as those in pure Python, it gets
        that of its model.

    Raises:
        RAVLTError: If there is no such config, or it has no model.
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
    """Return the file of a config, which may be one of the hosts."""
    host, separator, name = path.partition("::")
    if not separator:
        return path
    return os.path.join(get_installed_path(host), ".mim", "configs", name)


def _restore_classes(node) -> None:
    """Replace full names of classes and functions by what they name.

    A run writes a config in pure Python with such names. mmcv and mmdet resolve some of
    them (NMS, RoIAlign) only if they are short.
    """
    if isinstance(node, list | tuple):
        for item in node:
            _restore_classes(item)
    elif isinstance(node, dict):
        for value in dict.values(node):  # those of a ConfigDict import classes
            _restore_classes(value)
        kind = dict.get(node, "type")
        # With one dot, the first part is a scope.
        if isinstance(kind, str) and kind.count(".") > 1:
            module, _, name = kind.rpartition(".")
            node["type"] = LazyObject(module, name)


def _find_bases_of_the_forks() -> None:
    # mmengine asks for the distribution that holds ``mmseg::``, and its fork (0.10.12)
    # still for the original's. The module has the same name in both.
    if not is_installed("mmsegmentation") and is_installed("mmseg"):
        MODULE2PACKAGE["mmseg"] = "mmseg"


def type_name(part: Mapping, key: str = "type") -> str:
    """Return the name under which the type of a part of a config is registered.

    Args:
        part: A dict whose ``type`` is a name, with or without a scope
            (``'mmdet.CocoMetric'``), or a class, as in configs in pure Python. In a
            config that a run leaves, a class is its full name
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

    Configs in pure Python have none of their own.
    """
    if cfg.get("default_scope"):
        return cfg["default_scope"]
    kind = find_class(cfg.get("model") or {}, MODELS, None)
    bases = kind.__mro__ if kind else ()
    packages = (base.__module__.partition(".")[0] for base in bases)
    return next((name for name in packages if name in HOSTS), None)


def is_segmentation(cfg: Config) -> bool:
    """Return whether a config is one of mmseg, not of mmdet."""
    return find_scope(cfg) == "mmseg"


def find_datasets(loader: Mapping) -> Iterator[dict]:
    """Yield each innermost dataset config of a dataloader, whatever wraps it."""
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
