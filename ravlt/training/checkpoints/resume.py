"""Choose the checkpoint that a run resumes from: the newest intact one."""

import logging
import os
import re
import zipfile

from mmengine.config import Config
from mmengine.logging import print_log

from ravlt.errors import RAVLTError
from ravlt.training.distributed.rank_zero import on_rank_zero
from ravlt.weights.checkpoint import read_checkpoint

from .hook import INTERRUPTED

_CHECKPOINT = re.compile(rf"(epoch|iter)_.*\.pth|{re.escape(INTERRUPTED)}")


def set_resume(cfg: Config, resume: str | None, checksums: bool = True) -> None:
    """Make a run continue an earlier one.

    A config without a seed gets that of the earlier run, because the seed decides the
    order of the images. In a run of several processes rank 0 chooses for all.

    Args:
        cfg: Config with its ``work_dir``, changed in place.
        resume: ``'auto'`` for the newest intact checkpoint in the work directory (a new
            run if there is none at all), or a checkpoint. None leaves it to the config,
            which begins a new run unless it has ``resume=True``.
        checksums: Whether to verify the checksums of a checkpoint first.

    Raises:
        RAVLTError: If the named checkpoint does not exist or is damaged, or if all
            checkpoints in the work directory are damaged.
    """
    if resume is None and cfg.get("resume"):  # as mmengine reads these two keys
        resume = cfg.get("load_from") or "auto"
    if resume is None:
        return
    path, seed = on_rank_zero(lambda: _choose(cfg.work_dir, resume, checksums))
    if path is None:
        print_log(
            f"There is no checkpoint in '{cfg.work_dir}', so a new run begins.",
            logger="current",
            level=logging.WARNING,
        )
        return
    cfg.resume, cfg.load_from = True, path
    randomness = cfg.get("randomness") or {}
    if seed is not None and randomness.get("seed") is None:
        cfg.randomness = {**randomness, "seed": seed}


def _choose(
    work_dir: str, resume: str, checksums: bool
) -> tuple[str | None, int | None]:
    """Return a checkpoint and the seed of its run."""
    if resume == "auto":
        return _newest_intact(work_dir, checksums)
    if "://" in resume:
        return resume, None
    if os.path.exists(resume):
        return resume, _read_seed(resume, checksums)
    raise RAVLTError(
        f"--resume '{resume}' does not exist; name a checkpoint, or use --resume for "
        f"the latest in the work directory."
    )


def _newest_intact(work_dir: str, checksums: bool) -> tuple[str | None, int | None]:
    broken = []
    for path in _candidates(work_dir):
        try:
            seed = _read_seed(path, checksums)
        except RAVLTError as error:
            broken.append(str(error).rstrip("."))
            continue
        if broken:
            print_log(
                f"Resuming from '{path}': {'; '.join(broken)}.",
                logger="current",
                level=logging.WARNING,
            )
        return path, seed
    if broken:
        raise RAVLTError(
            f"No checkpoint in '{work_dir}' is intact: {'; '.join(broken)}; restore "
            f"one, or begin anew without --resume."
        )
    return None, None


def _candidates(work_dir: str) -> list[str]:
    """Return the checkpoint that mmengine points to, then all others, newest first."""
    paths, folder = [], work_dir
    pointer = os.path.join(work_dir, "last_checkpoint")
    if os.path.isfile(pointer):
        with open(pointer) as file:
            path = file.read().strip()
        # The file is empty if a kill interrupted its writing.
        if path.endswith(".pth") and os.path.exists(path):
            paths, folder = [path], os.path.dirname(path)
    if os.path.isdir(folder):
        others = [
            entry.path
            for entry in os.scandir(folder)
            if _CHECKPOINT.fullmatch(entry.name)
        ]
        paths += sorted(others, key=os.path.getmtime, reverse=True)
    return list(dict.fromkeys(paths))


def _read_seed(path: str, checksums: bool) -> int | None:
    """Return the seed of the run that wrote a checkpoint.

    Raises:
        RAVLTError: If it is damaged, or contains only weights.
    """
    if checksums:
        _check_sums(path)
    meta = read_checkpoint(path).get("meta", {})
    if "iter" not in meta:
        raise RAVLTError(
            f"'{path}' holds no state of a run; for its weights alone, set load_from."
        )
    return meta.get("seed")


def _check_sums(path: str) -> None:
    """Verify the checksum (CRC-32) of each tensor in a checkpoint.

    A checkpoint is a zip archive. PyTorch writes the checksums but does not verify them
    when it loads.

    Raises:
        RAVLTError: If a checksum does not match.
    """
    wrong = None
    try:
        # Files of PyTorch before 1.6 and truncated ones are no archives; loading them
        # reports an error where there is one.
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                changed = archive.testzip()
            wrong = changed and f"{changed} has changed"
    # The zip reader raises many types of exceptions for a damaged archive.
    except Exception as error:
        wrong = str(error) or type(error).__name__
    if wrong:
        raise RAVLTError(f"'{path}' is damaged ({wrong}); restore it.")
