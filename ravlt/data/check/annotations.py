"""Bad records of a COCO file: found when a run begins, an error or left out."""

import json
import logging
import os
import zlib
from collections import Counter

from mmengine.logging import print_log

from ravlt.errors import RAVLTError
from ravlt.storage import AtomicLocalBackend

from .coco import check_coco, read_coco, without_images
from .dataset import build_bare, is_coco, use_of
from .problems import ERROR, KINDS, LEFT_OUT, Problem

_TOOL = "tools/misc/check_dataset.py"


def verify_coco(
    config: dict, scope: str, training: bool, action: str, folder: str
) -> None:
    """Looks at the annotations of a dataset, if they are COCO's, before it is built.

    Args:
        config: Config of the dataset. If images are left out, its ``ann_file`` becomes
            a copy without them.
        scope: ``'mmdet'`` or ``'mmseg'``.
        training: Whether it is trained on; in evaluation nothing is left out.
        action: ``'error'`` or ``'skip'``: leave out images with bad annotations.
        folder: Where the copy goes.

    Raises:
        RAVLTError: For bad annotations, if they may not or cannot be left out.
    """
    try:
        dataset = build_bare(config, scope)
    except Exception:  # says the same, with its traceback, when the runner builds it
        return
    if not is_coco(dataset):
        return
    path, use = dataset.ann_file, use_of(dataset, config, training)
    content = read_coco(path)
    problems = check_coco(content, path, use)
    errors = _errors(problems)
    if errors:
        ids = {p.image for p in errors}
        rest = without_images(content, ids)
        can_skip = training and not _errors(check_coco(rest, path, use))
        if action != "skip" or not can_skip:
            raise RAVLTError(_refusal(errors, can_skip))
        config["ann_file"] = _write(rest, path, folder)
        _warn(
            f"Skipped {len(ids)} of {len(content['images'])} images for their "
            f"annotations: {errors[0]}; '{config['ann_file']}' is without them, and "
            f"{_TOOL} lists all."
        )
    lost = Counter(p.kind for p in problems if p.kind in LEFT_OUT)
    if lost:
        kinds = ", ".join(f"{count} x {kind}" for kind, count in lost.items())
        _warn(f"'{path}' has objects that are left out: {kinds}; {_TOOL} lists them.")


def _refusal(errors: list[Problem], can_skip: bool) -> str:
    first, more = errors[0], len(errors) - 1
    others = f" and {more} more" if more else ""
    skip = ", or train without such images by bad_images='skip'" if can_skip else ""
    return (
        f"Cannot use '{first.file}': {first.detail} ({KINDS[first.kind]}){others}; "
        f"correct what {_TOOL} lists{skip}."
    )


def _errors(problems: list[Problem]) -> list[Problem]:
    return [p for p in problems if p.severity == ERROR]


def _write(content: dict, path: str, folder: str) -> str:
    # Data sets that are joined may each have a train.json.
    name = f"sound_{zlib.crc32(path.encode()):08x}_{os.path.basename(path)}"
    target = os.path.abspath(os.path.join(folder, name))
    # At once, because other processes of the run write the same.
    AtomicLocalBackend().put(json.dumps(content).encode(), target)
    return target


def _warn(message: str) -> None:
    print_log(message, logger="current", level=logging.WARNING)
