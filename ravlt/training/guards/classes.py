"""Compare the class counts of heads with the classes of the data, before a run.

mmdet's ``NumClassCheckHook`` needs a built model, refuses panoptic and text-prompted
models, does not exist for segmentors, and names no key of the config.
"""

import logging
import re
from collections.abc import Iterator, Mapping, Sequence

from mmengine.config import Config
from mmengine.dataset import BaseDataset
from mmengine.logging import print_log

from ravlt.config import find_datasets, is_segmentation, type_name
from ravlt.data.check.dataset import build_bare
from ravlt.errors import RAVLTError

# Parts of a model with classes of their own: proposals (object or background),
# identities of a tracker, COCO-Stuff classes of HTC's semantic branch.
_OWN_CLASSES = ("backbone", "reid", "rpn", "semantic_head")
_BOUNDARY_HEAD = "STDCHead"  # boundary or not
# Heads whose number of classes the hosts define as that of the data. Others, such as
# those of somebody's own model, may count something else.
_HEADS = re.compile(r"\.(bbox|mask|decode|auxiliary|panoptic)_head(\.\d+)?\.\w+$")
# mmdet's base class of data sets for detection. Data sets of videos have another one,
# and a tracker's detector need not share their classes.
_DETECTION = "BaseDetDataset"


def check_classes(cfg: Config, loaders: Sequence[str]) -> None:
    """Compare every number of classes in a model with the classes of the data sets.

    A segmentor's head with more classes than the data set trains and evaluates, so it
    is a warning, as is a head that the hosts do not have. Data sets that cannot be
    built yet are left to the runner; ``bad_images='off'`` turns the comparison off.

    Args:
        cfg: Config of mmdet or mmseg.
        loaders: Names of the dataloaders that will be used.

    Raises:
        RAVLTError: If a head does not fit a data set, or a data set and its pipeline
            contradict each other about ``reduce_zero_label``; names the keys.
    """
    # The classes of a language model are given as text.
    if "language_model" in cfg.model or cfg.get("bad_images") == "off":
        return
    for loader in loaders:
        for config in find_datasets(cfg.get(loader) or {}):
            try:
                dataset = build_bare(config, cfg.default_scope)
            except Exception:  # the runner reports it, with its traceback
                continue
            if is_segmentation(cfg):
                _check_zero_label(dataset, config, loader)
            elif _DETECTION not in (base.__name__ for base in type(dataset).__mro__):
                continue
            for key, names in _classes_of(dataset, loader).items():
                _compare(cfg, key, names, loader)


def _classes_of(dataset: BaseDataset, loader: str) -> dict[str, Sequence[str]]:
    """Return, for each key of a head, the class names whose number it holds."""
    meta = dataset.metainfo
    names = meta.get("classes") or ()
    if isinstance(names, str):
        raise RAVLTError(
            f"{loader}.dataset.metainfo.classes='{names}' is no list of names; write "
            f"classes=('{names}',), with a comma."
        )
    # Boxes and masks of a panoptic model are those of its things.
    things, stuff = meta.get("thing_classes", names), meta.get("stuff_classes", ())
    # The names of a COCO panoptic data set stay if a config changes only `classes`.
    if not {*things, *stuff} <= {*names}:
        return {}
    found = dict(num_classes=things, num_things_classes=things, num_stuff_classes=stuff)
    return {key: names for key, names in found.items() if names}


def _compare(cfg: Config, key: str, names: Sequence[str], loader: str) -> None:
    # A segmentor with one class predicts the foreground by a sigmoid.
    fitting = {len(names), 1} if is_segmentation(cfg) else {len(names)}
    counts = _find_counts(cfg.model, key)
    wrong = {path: count for path, count in counts if count not in fitting}
    if not wrong:
        return
    known = {path: count for path, count in wrong.items() if _HEADS.search(path)}
    wrong = known or wrong
    listed = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
    message = (
        f"{' and '.join(f'{path}={count}' for path, count in wrong.items())} "
        f"{'does' if len(wrong) == 1 else 'do'} not fit {loader}.dataset, which has "
        f"{len(names)} classes ({listed}); set {key}={len(names)}, or correct the data "
        f"set's metainfo.classes."
    )
    if not known or (is_segmentation(cfg) and min(wrong.values()) > len(names)):
        print_log(message, "current", logging.WARNING)
    else:
        raise RAVLTError(message)


def _find_counts(node, key: str, path: str = "model") -> Iterator[tuple[str, int]]:
    """Yield path and value of a key wherever it is the number of the data's classes."""
    if isinstance(node, list | tuple):
        for index, item in enumerate(node):
            yield from _find_counts(item, key, f"{path}.{index}")
    elif isinstance(node, Mapping):
        own = key == "num_classes" and any(name in path for name in _OWN_CLASSES)
        if isinstance(node.get(key), int) and not own and not _is_binary(node):
            yield f"{path}.{key}", node[key]
        for name, item in node.items():
            yield from _find_counts(item, key, f"{path}.{name}")


def _is_binary(head: Mapping) -> bool:
    """Return whether a head predicts foreground or background for any classes."""
    return (
        type_name(head) == _BOUNDARY_HEAD
        or bool(head.get("class_agnostic"))
        or head.get("out_channels") == 1
    )


def _check_zero_label(dataset: BaseDataset, config: Mapping, loader: str) -> None:
    declared = getattr(dataset, "reduce_zero_label", None)
    for index, step in enumerate(config.get("pipeline") or ()):
        stated = step.get("reduce_zero_label")
        if None not in (declared, stated) and declared != stated:
            raise RAVLTError(
                f"{loader}.dataset.pipeline.{index}.reduce_zero_label={stated} does "
                f"not fit its data set, whose reduce_zero_label is {declared}; leave "
                f"it out of the pipeline."
            )
