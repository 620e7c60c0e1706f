"""Check the data of a config: before a run, or completely in one pass."""

import logging
import os

from mmengine.config import Config
from mmengine.logging import print_log
from mmengine.runner import Runner

from ravlt.config import LOADERS, find_datasets, type_name
from ravlt.errors import RAVLTError

from .annotations import verify_coco
from .dataset import check_dataset, reading_of
from .passed import PassedChecks
from .problems import Problem

_ACTIONS = ("error", "skip", "off")


def check_data(cfg: Config, loaders: tuple[str, ...] = LOADERS) -> None:
    """Check that folders and files of the datasets exist, before anything is built.

    COCO files are read and checked as well, unless they passed in an earlier run. With
    ``bad_images='skip'``, training skips images with bad annotations. With ``'off'``,
    no file is read.

    Args:
        cfg: Config of mmdet or mmseg, changed in place: with ``'skip'``, an
            ``ann_file`` with bad images becomes a copy without them.
        loaders: Names of the dataloaders that will be used.

    Raises:
        RAVLTError: If a folder or file is missing or bad; names it and the config key.
    """
    action, work_dir = _action(cfg), cfg.get("work_dir")
    passed = PassedChecks(PassedChecks.place(work_dir))
    passed.limit()
    for name in loaders:
        for dataset in find_datasets(cfg.get(name) or {}):
            if _is_remote(dataset, dataset.get("backend_args")):
                continue
            _find_files(dataset, name)
            if cfg.get("default_scope") and action != "off":
                verify_coco(
                    dataset,
                    cfg.default_scope,
                    training=name == LOADERS[0],
                    action=action,
                    folder=work_dir or ".",
                    passed=passed,
                )


def _action(cfg: Config) -> str:
    action = cfg.get("bad_images", _ACTIONS[0])
    if action not in _ACTIONS:
        raise RAVLTError(f"bad_images='{action}' is unknown; use one of {_ACTIONS}.")
    return action


def _is_remote(dataset: dict, backend_args: dict | None) -> bool:
    """Return whether files come from a storage backend or a URL, not from a disk."""
    places = [dataset.get(key) for key in ("data_root", "ann_file")]
    places += _prefixes(dataset).values()
    backend = (backend_args or {}).get("backend", "local")
    return backend != "local" or any("://" in str(place) for place in places)


def _prefixes(dataset: dict) -> dict:
    prefixes = dataset.get("data_prefix") or {}
    return prefixes if isinstance(prefixes, dict) else {"": prefixes}


def _find_files(dataset: dict, name: str) -> None:
    root = dataset.get("data_root") or ""
    if root and not os.path.isdir(root):
        raise RAVLTError(
            f"{name}.dataset.data_root '{root}' does not exist; give the data set's "
            f"folder with --data-root."
        )
    places = {"ann_file": dataset.get("ann_file")}
    for key, value in _prefixes(dataset).items():
        places[f"data_prefix.{key}".rstrip(".")] = value
    for key, value in places.items():
        if not isinstance(value, str) or not value:  # left to the data set
            continue
        path = os.path.join(root, value)
        if not os.path.exists(path):
            raise RAVLTError(
                f"{name}.dataset.{key} '{path}' does not exist; correct that key, or "
                f"give the data set's folder with --data-root."
            )


def check_all_data(cfg: Config, jobs: int) -> list[Problem]:
    """Return all problems of the data sets of a config.

    Args:
        cfg: Config of mmdet or mmseg.
        jobs: Number of processes that decode images; 0 decodes in this one.
    """
    scope = cfg.get("default_scope", "mmdet")
    problems, seen = [], []
    for name in LOADERS:
        for dataset in find_datasets(cfg.get(name) or {}):
            # Most configs use one data set for validation and test.
            key = name == LOADERS[0], dataset
            if key not in seen:
                seen.append(key)
                problems += check_dataset(
                    dataset, scope, key[0], _num_classes(cfg), jobs
                )
    return problems


def verify_images(runner: Runner) -> None:
    """Put :class:`ravlt.data.check.verify.VerifyImages` before every image loader.

    For a training image that is damaged or does not fit its labels, the config's
    ``bad_images`` selects ``'error'`` (default) or ``'skip'``. In evaluation it is
    always an error, because skipping an image would change the metric. ``'off'`` adds
    no step. Remote images are not checked, since they would be downloaded twice; a
    warning reports this.

    The hosts' inferencers expect an image loader first in a pipeline. The step
    therefore goes into the dataloaders that the runner builds and not into
    ``runner.cfg``, which is saved in work directories and checkpoints.

    Args:
        runner: Runner that has not built a dataloader yet.
    """
    action = _action(runner.cfg)
    if action == "off":
        return
    step = dict(type="VerifyImages", passed=PassedChecks.place(runner.work_dir))
    num_classes = _num_classes(runner.cfg)
    if num_classes:
        step["num_classes"] = num_classes
    for name in LOADERS:
        step["on_error"] = action if name == LOADERS[0] else "error"
        for dataset in find_datasets(getattr(runner, f"_{name}") or {}):
            pipeline = dataset.get("pipeline") or []
            kinds = [type_name(part) for part in pipeline]
            if "LoadImageFromFile" not in kinds:
                continue
            reading = reading_of(pipeline)
            if _is_remote(dataset, reading.get("backend_args")):
                print_log(
                    f"The images of {name} are not checked, because they are remote "
                    f"and would be downloaded twice; tools/misc/check_dataset.py "
                    f"checks them once.",
                    logger="current",
                    level=logging.WARNING,
                )
                continue
            at = kinds.index("LoadImageFromFile")
            dataset["pipeline"] = [*pipeline[:at], step | reading, *pipeline[at:]]


def remove_verification(cfg: Config) -> None:
    """Remove the step of :func:`verify_images` from a config that version 0.1.0 wrote.

    Args:
        cfg: Config of mmdet or mmseg, changed in place.
    """
    for name in LOADERS:
        for dataset in find_datasets(cfg.get(name) or {}):
            steps = dataset.get("pipeline") or []
            kept = [step for step in steps if type_name(step) != "VerifyImages"]
            if len(kept) < len(steps):
                dataset["pipeline"] = kept


def _num_classes(cfg: Config) -> int | None:
    """Return the smallest number of classes of a segmentor's heads, if there is one."""
    heads = (cfg.get("model") or {}).get("decode_head") or []
    heads = heads if isinstance(heads, list) else [heads]
    return min((h["num_classes"] for h in heads if h.get("num_classes")), default=None)
