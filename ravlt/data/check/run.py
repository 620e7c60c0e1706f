"""Check the data of a config: before a run, or all in one pass."""

import os

from mmengine.config import Config
from mmengine.runner import Runner

from ravlt.config import LOADERS, find_datasets, type_name
from ravlt.errors import RAVLTError

from .annotations import verify_coco
from .dataset import check_dataset, reading_of
from .problems import Problem


def check_data(cfg: Config, loaders: tuple[str, ...] = LOADERS) -> None:
    """Looks for the folders and files of the datasets, before anything is built.

    COCO files are read, too; ``bad_images='skip'`` leaves out training images with
    bad annotations.

    Args:
        cfg: Config of mmdet or mmseg; an ``ann_file`` with bad images is exchanged.
        loaders: Which dataloaders will be used.

    Raises:
        RAVLTError: If one is missing or bad; names it, and the key to correct.
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
            if cfg.get("default_scope"):
                verify_coco(
                    dataset,
                    cfg.default_scope,
                    training=name == LOADERS[0],
                    action=cfg.get("bad_images", "error"),
                    folder=cfg.get("work_dir") or ".",
                )


def check_all_data(cfg: Config, jobs: int) -> list[Problem]:
    """Finds everything that is wrong with the data sets of a config.

    Args:
        cfg: Config of mmdet or mmseg.
        jobs: Number of processes that decode images; 0 decodes in this one.
    """
    scope = cfg.get("default_scope", "mmdet")
    problems, seen = [], []
    for name in LOADERS:
        for dataset in find_datasets(cfg.get(name) or {}):
            # Most configs test on what they evaluate on.
            key = name == LOADERS[0], dataset
            if key not in seen:
                seen.append(key)
                problems += check_dataset(
                    dataset, scope, key[0], _num_classes(cfg), jobs
                )
    return problems


def verify_images(runner: Runner) -> None:
    """Put :class:`ravlt.data.check.verify.VerifyImages` before every image loader.

    The config's ``bad_images`` says what a training image does that is broken or unlike
    its labels: ``'error'`` (default) or ``'skip'``. In evaluation it is always an
    error, because leaving an image out would change the metric.

    The hosts' inferencers expect an image loader first in a pipeline, so the step goes
    into the dataloaders that the runner builds and not into ``runner.cfg``, which work
    directories and checkpoints keep.

    Args:
        runner: Runner that has built none of its dataloaders yet.
    """
    num_classes = _num_classes(runner.cfg)
    in_training = runner.cfg.get("bad_images", "error")
    for name in LOADERS:
        action = in_training if name == LOADERS[0] else "error"
        for dataset in find_datasets(getattr(runner, f"_{name}") or {}):
            _insert(dataset.get("pipeline") or [], action, num_classes)


def remove_verification(cfg: Config) -> None:
    """Remove the step of :func:`verify_images` from a config that a 0.1.0 run left.

    Args:
        cfg: Config of mmdet or mmseg, changed in place.
    """
    for name in LOADERS:
        for dataset in find_datasets(cfg.get(name) or {}):
            steps = dataset.get("pipeline") or []
            steps[:] = [s for s in steps if type_name(s) != "VerifyImages"]


def _insert(pipeline: list, action: str, num_classes: int | None) -> None:
    kinds = [type_name(step) for step in pipeline]
    if "LoadImageFromFile" not in kinds:
        return
    step = dict(type="VerifyImages", on_error=action, **reading_of(pipeline))
    if num_classes:
        step["num_classes"] = num_classes
    pipeline.insert(kinds.index("LoadImageFromFile"), step)


def _num_classes(cfg: Config) -> int | None:
    """The number of classes of a segmentor's heads, if they have one."""
    heads = (cfg.get("model") or {}).get("decode_head") or []
    heads = heads if isinstance(heads, list) else [heads]
    return min((h["num_classes"] for h in heads if h.get("num_classes")), default=None)
