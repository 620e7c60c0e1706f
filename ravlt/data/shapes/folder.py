"""Folders of generated data sets, created atomically and identified by a manifest."""

import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np

from ravlt.errors import RAVLTError


def write_once(
    root: Path, kind: str, manifest: Mapping, write: Callable[[Path], None]
) -> Path:
    """Write a data set, unless the folder already holds the same one.

    The folder is created atomically, with the manifest in ``<kind>.json``.

    Args:
        root: The data set's folder; it must be new, empty or hold the same set.
        kind: Name of the data set.
        manifest: Everything that the set depends on.
        write: Function that writes the set into a new folder.

    Returns:
        The folder, as given.

    Raises:
        RAVLTError: If the folder holds other files or a set with another manifest.
    """
    if _holds(root, kind, manifest):
        return root
    target = root.resolve()
    target.parent.mkdir(parents=True, exist_ok=True)
    # The draft is inside the temporary folder, which other users cannot read.
    with tempfile.TemporaryDirectory(prefix=f".{kind}-", dir=target.parent) as scratch:
        draft = Path(scratch) / kind
        write(draft)
        write_json(draft / f"{kind}.json", manifest)
        # Checked again, because another process may have written the set meanwhile.
        if not _holds(root, kind, manifest):
            if target.exists():
                target.rmdir()
            draft.rename(target)
    return root


def check_counts(num_train: int, num_val: int, seed: int) -> None:
    """Check that splits are not empty and the seed is not negative.

    Raises:
        RAVLTError: If a number is out of range.
    """
    for name, count in (("num_train", num_train), ("num_val", num_val)):
        if count < 1:
            raise RAVLTError(f"{name} is {count}: give at least 1 image.")
    if seed < 0:
        raise RAVLTError(f"seed is {seed}: give an integer of at least 0.")


def write_image(path: Path, image: np.ndarray, options: Sequence[int] = ()) -> None:
    """Write an image, BGR or grey, in the format of the file's suffix."""
    _, data = cv2.imencode(path.suffix, image, list(options))
    path.write_bytes(data.tobytes())


def write_json(path: Path, content: Mapping) -> None:
    """Write a JSON file."""
    path.write_text(json.dumps(content), encoding="utf-8")


def _holds(root: Path, kind: str, manifest: Mapping) -> bool:
    """Return True if the folder holds the set, False if it is new or empty.

    Raises:
        RAVLTError: If the folder holds anything else.
    """
    if not root.exists() or (root.is_dir() and not any(root.iterdir())):
        return False
    try:
        found = json.loads((root / f"{kind}.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise RAVLTError(
            f"{root} holds something other than a {kind} data set: choose another "
            "folder or delete it."
        ) from None
    if found != manifest:
        raise RAVLTError(
            f"{root} holds a {kind} data set made with other arguments (see "
            f"{kind}.json in it): choose another folder or delete it."
        )
    return True
