"""Atomic writes of files, which survive a kill, and errors of full disks."""

import contextlib
import errno
import io
import os
import tempfile

import torch
from mmengine.fileio import LocalBackend, register_backend

from ravlt.errors import RAVLTError

_PREFIX, _PARTIAL = "writing-", ".part"
_ADVICE = "free space or make it writable, then continue (training: --resume)"
# The disk is full, over quota, at its limit of file sizes, or read-only.
_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)


class AtomicLocalBackend(LocalBackend):
    """Local backend of mmengine that writes a temporary file and renames it."""

    sync = True  # whether writing waits until the file is on the disk

    def put(self, obj: bytes, filepath) -> None:
        """Write bytes to a file atomically.

        Raises:
            RAVLTError: If the file cannot be written, because the disk is full for
                example. An old file is unchanged.
        """
        folder = os.path.dirname(os.path.abspath(filepath))
        try:
            os.makedirs(folder, exist_ok=True)
            self._write(obj, filepath, folder)
        except OSError as error:
            raise RAVLTError(
                f"Cannot write '{filepath}' ({error.strerror or error}), so it is "
                f"unchanged; {_ADVICE}."
            ) from error

    def _write(self, obj: bytes, filepath, folder: str) -> None:
        handle, temporary = tempfile.mkstemp(_PARTIAL, _PREFIX, folder)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(obj)
                file.flush()
                if self.sync:
                    os.fsync(file.fileno())
            # mkstemp() creates a private file; set the permissions of open().
            umask = os.umask(0)
            os.umask(umask)
            os.chmod(temporary, 0o666 & ~umask)
            os.replace(temporary, filepath)
        except BaseException:
            os.unlink(temporary)
            raise
        if not self.sync:
            return
        # The rename is on the disk only after a sync of the folder, which some network
        # file systems do not support.
        with contextlib.suppress(OSError):
            handle = os.open(folder, os.O_RDONLY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)


def use_atomic_writes(sync: bool = True) -> None:
    """Make mmengine write local files through :class:`AtomicLocalBackend`.

    Only programs should call it, because it changes mmengine's global registry.

    Args:
        sync: Whether writing waits until a file is on the disk. Without it, a file
            survives a kill of the process but may not survive a loss of power.
    """
    AtomicLocalBackend.sync = sync
    register_backend("local", AtomicLocalBackend, force=True, prefixes="")


def remove_partial(folder: str) -> None:
    """Remove temporary files of killed writers; no process may write to the folder."""
    for entry in os.scandir(folder) if os.path.isdir(folder) else ():
        if entry.name.startswith(_PREFIX) and entry.name.endswith(_PARTIAL):
            os.remove(entry.path)


def explain_refusal(error: BaseException) -> str | None:
    """Return a sentence on an error of a full or read-only disk; None for others."""
    if not isinstance(error, OSError) or error.errno not in _DISK_ERRORS:
        return None
    place = f" '{error.filename}'" if error.filename else ""
    return f"Cannot write{place} ({error.strerror}); {_ADVICE}."


def save_new(checkpoint: dict, path: str) -> None:
    """Save a checkpoint as a new file, see :func:`write_new`."""
    buffer = io.BytesIO()
    torch.save(checkpoint, buffer)
    write_new(buffer.getvalue(), path)


def write_new(data: bytes, path: str) -> None:
    """Write a new file atomically.

    Raises:
        RAVLTError: If the file exists, or cannot be written.
    """
    if os.path.exists(path):
        raise RAVLTError(f"'{path}' exists; name another file or remove it.")
    AtomicLocalBackend().put(data, path)
