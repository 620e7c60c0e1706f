"""Point the data sets of a config to another folder, and record the folder of a run.

mmengine writes the config of a run into its work directory. A key of its own records
the folder from the command line there, so that commands that continue the run find it.
A ``data_root`` that the user changes in the config file keeps its effect.
"""

import ast
import os

from mmengine.config import Config

from ravlt.config import LOADERS, find_datasets, find_evaluators

_RECORD = "data_root_of_run"


def set_data_root(cfg: Config, root: str) -> None:
    """Point every dataset and evaluator of a config to another folder.

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
    """Replace the first of the old roots that contains a path."""
    for prefix in old:
        folder = os.path.join(prefix, "")
        if path.startswith(folder):
            return os.path.join(root, path[len(folder) :].lstrip("/"))
    return path


def record_data_root(cfg: Config, root: str) -> None:
    """Record a folder in the config that mmengine writes into the work directory.

    Args:
        cfg: Config, changed in place.
        root: Folder; a relative path is recorded as an absolute one.
    """
    cfg[_RECORD] = root if "://" in root else os.path.abspath(root)


def recorded_data_root(cfg: Config, folder: str) -> str | None:
    """Return the folder that a run of the same config recorded.

    The file is parsed and not executed, because it may be of another author, as one
    that was downloaded with a checkpoint.

    Args:
        cfg: A config that was read from a file.
        folder: Work directory of the run.

    Returns:
        The folder; None if the work directory has no other config of the same file
        name, or that config records none.
    """
    path = os.path.join(folder, os.path.basename(cfg.filename))
    if not os.path.isfile(path) or os.path.samefile(path, cfg.filename):
        return None
    try:
        with open(path) as file:
            statements = ast.parse(file.read()).body
    except (SyntaxError, ValueError):  # a config in JSON or YAML, a damaged file
        return None
    for node in statements:
        if (
            isinstance(node, ast.Assign)
            and ast.unparse(node.targets) == _RECORD
            and isinstance(node.value, ast.Constant)
        ):
            return str(node.value.value)
    return None
