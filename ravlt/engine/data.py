"""The data of a config: found, pointed elsewhere, and checked before a run."""

import os
from collections.abc import Iterator

from mmengine.config import Config

from ravlt.errors import RAVLTError

_LOADERS = ("train_dataloader", "val_dataloader", "test_dataloader")


def find_datasets(loader: dict) -> Iterator[dict]:
    """Yields each innermost dataset config of a dataloader, whatever wraps it."""
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


def set_data_root(cfg: Config, root: str) -> None:
    """Points every dataset and evaluator of a config to another folder.

    Args:
        cfg: Config of mmdet or mmseg, changed in place.
        root: Folder with the layout that the config expects.
    """
    old = []
    for name in _LOADERS:
        for dataset in find_datasets(cfg.get(name) or {}):
            if dataset.get("data_root"):
                old.append(dataset["data_root"])
            dataset["data_root"] = root
    for name in ("val_evaluator", "test_evaluator"):
        evaluators = cfg.get(name) or []
        for evaluator in evaluators if isinstance(evaluators, list) else [evaluators]:
            path = evaluator.get("ann_file")
            for prefix in old:
                folder = os.path.join(prefix, "")
                if path and path.startswith(folder):
                    relative = path[len(folder) :].lstrip("/")
                    evaluator["ann_file"] = os.path.join(root, relative)
                    break


def check_data(cfg: Config, loaders: tuple[str, ...] = _LOADERS) -> None:
    """Looks for the folders and files of the datasets, before anything is built.

    Args:
        cfg: Config of mmdet or mmseg.
        loaders: Which dataloaders will be used.

    Raises:
        RAVLTError: If one is missing; names it, and the key to correct.
    """
    for name in loaders:
        for dataset in find_datasets(cfg.get(name) or {}):
            root = dataset.get("data_root") or ""
            if "://" in root or dataset.get("backend_args"):
                continue  # not on a local disk
            if root and not os.path.isdir(root):
                raise RAVLTError(
                    f"{name}.dataset.data_root '{root}' does not exist; give the data "
                    f"set's folder with --data-root."
                )
            places = {"ann_file": dataset.get("ann_file")}
            for key, value in (dataset.get("data_prefix") or {}).items():
                places[f"data_prefix.{key}"] = value
            for key, value in places.items():
                path = os.path.join(root, value) if value else ""
                if path and not os.path.exists(path):
                    raise RAVLTError(
                        f"{name}.dataset.{key} '{path}' does not exist; correct that "
                        f"key, or give the data set's folder with --data-root."
                    )


def verify_images(cfg: Config) -> None:
    """Puts :class:`ravlt.datasets.verify.VerifyImages` in front of every image loader.

    The config's ``bad_images`` says what a broken training image does: ``'error'``
    (default) or ``'skip'``. In evaluation it is always an error, because leaving an
    image out would change the metric.

    Args:
        cfg: Config of mmdet or mmseg, changed in place.
    """
    for name in _LOADERS:
        action = cfg.get("bad_images", "error") if name == _LOADERS[0] else "error"
        for dataset in find_datasets(cfg.get(name) or {}):
            _insert(dataset.get("pipeline") or [], action)


def _insert(pipeline: list, action: str) -> None:
    kinds = [str(step["type"]).rpartition(".")[2] for step in pipeline]
    if "VerifyImages" in kinds or "LoadImageFromFile" not in kinds:
        return
    place = kinds.index("LoadImageFromFile")
    step = dict(type="VerifyImages", on_error=action)
    if pipeline[place].get("backend_args"):
        step["backend_args"] = pipeline[place]["backend_args"]
    pipeline.insert(place, step)
