"""Check COCO annotations before a run: raise an error, or skip the bad images."""

import json
import logging
import os
import zlib
from collections import Counter

from mmengine.logging import print_log

from ravlt.errors import RAVLTError
from ravlt.storage import AtomicLocalBackend

from .coco import Use, check_coco, read_coco, without_images
from .dataset import build_bare, is_coco, use_of
from .passed import PassedChecks, file_state, fingerprint
from .problems import ERROR, KINDS, LEFT_OUT, Problem

_TOOL = "tools/misc/check_dataset.py"


def verify_coco(
    config: dict,
    scope: str,
    training: bool,
    action: str,
    folder: str,
    passed: PassedChecks,
) -> None:
    """Check the annotations of a dataset before it is built, if it reads a COCO file.

    Args:
        config: Config of the dataset, changed in place: if images are skipped, its
            ``ann_file`` becomes a copy without them.
        scope: ``'mmdet'`` or ``'mmseg'``.
        training: Whether the dataset is for training; evaluation skips no image.
        action: ``'error'``, or ``'skip'`` to skip images with bad annotations.
        folder: Folder for the copy.
        passed: Record of earlier checks; unchanged files and settings are not checked
            again.

    Raises:
        RAVLTError: If annotations are bad, and are not or cannot be skipped.
    """
    try:
        dataset = build_bare(config, scope)
    except Exception:  # the runner raises the same when it builds the dataset
        return
    if not is_coco(dataset):
        return
    path, use = dataset.ann_file, use_of(dataset, config, training)
    copy = _copy_of(path, folder)
    checked = action, use, file_state(path)
    outcome = _recall(passed.find(fingerprint(checked)))
    if outcome is None:
        outcome = _recall(passed.find(fingerprint(checked, file_state(copy))))
    if outcome is None:
        outcome = _check(path, use, action, copy)
        # A copy belongs to one work directory; without it, the check is repeated.
        parts = (checked, file_state(copy)) if outcome["skipped"] else (checked,)
        passed.add(fingerprint(*parts), json.dumps(outcome))
    if outcome["skipped"]:
        config["ann_file"] = copy
    for warning in outcome["warnings"]:
        print_log(warning, logger="current", level=logging.WARNING)


def _recall(note: str | None) -> dict | None:
    try:
        return json.loads(note or "")
    except ValueError:  # an incomplete line
        return None


def _check(path: str, use: Use, action: str, copy: str) -> dict:
    """Check a file; in ``'skip'`` mode, write a copy without bad images if needed."""
    warnings = []
    content = read_coco(path)
    problems = check_coco(content, path, use)
    errors = _errors(problems)
    if errors:
        ids = {p.image for p in errors}
        rest = without_images(content, ids)
        can_skip = use.training and not _errors(check_coco(rest, path, use))
        if action != "skip" or not can_skip:
            raise RAVLTError(_refusal(errors, can_skip))
        # Atomically, because other processes of the run may write the same file.
        AtomicLocalBackend().put(json.dumps(rest).encode(), copy)
        warnings.append(
            f"Skipped {len(ids)} of {len(content['images'])} images for their "
            f"annotations: {errors[0]}; '{copy}' is without them, and {_TOOL} lists "
            f"all."
        )
    lost = Counter(p.kind for p in problems if p.kind in LEFT_OUT)
    if lost:
        kinds = ", ".join(f"{count} x {kind}" for kind, count in lost.items())
        warnings.append(
            f"'{path}' has objects that are left out: {kinds}; {_TOOL} lists them."
        )
    return dict(skipped=bool(errors), warnings=warnings)


def _copy_of(path: str, folder: str) -> str:
    # Concatenated data sets may each have a file of the same name.
    name = f"sound_{zlib.crc32(path.encode()):08x}_{os.path.basename(path)}"
    return os.path.abspath(os.path.join(folder, name))


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
