"""Point the data sets of a config to another folder."""

import os

from mmengine.config import Config

from ravlt.config import LOADERS, find_datasets, find_evaluators


def set_data_root(cfg: Config, root: str) -> None:
    """Points every dataset and evaluator of a config to another folder.

    Args:
        cfg: Config of mmdet or mmseg, changed in place.
        root: Folder with the layout that the config expects.
    """
    old = []
    for name in LOADERS:
        for dataset in find_datasets(cfg.get(name) or {}):
            if dataset.get("data_root"):
                old.append(dataset["data_root"])
            dataset["data_root"] = root
    for split in ("val", "test"):
        for evaluator in find_evaluators(cfg, split):
            for key in ("ann_file", "seg_prefix"):
                if evaluator.get(key):
                    evaluator[key] = _moved(evaluator[key], old, root)


def _moved(path: str, old: list[str], root: str) -> str:
    """Return a path with the first of the old roots that it lies in replaced."""
    for prefix in old:
        folder = os.path.join(prefix, "")
        if path.startswith(folder):
            return os.path.join(root, path[len(folder) :].lstrip("/"))
    return path
