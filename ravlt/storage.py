"""Files that are whole or absent: a kill while writing leaves the old one."""

import contextlib
import errno
import io
import os
import tempfile

import torch
from mmengine.fileio import LocalBackend, register_backend

from ravlt.errors import RAVLTError

_PREFIX, _PARTIAL = "writing-", ".part"
_ADVICE = "make room there, or make it writable, and go on (a training by --resume)"
# What a disk that takes no more says: full, over quota, too large, read-only.
_REFUSALS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)


class AtomicLocalBackend(LocalBackend):
    """mmengine's local backend, which writes beside the file and then renames."""

    def put(self, obj: bytes, filepath) -> None:
        """Writes bytes; the file changes at once or not at all.

        Raises:
            RAVLTError: If the disk is full, or refuses for another reason.
        """
        folder = os.path.dirname(os.path.abspath(filepath))
        try:
            os.makedirs(folder, exist_ok=True)
            self._write(obj, filepath, folder)
        except OSError as error:
            raise RAVLTError(
                f"Cannot write '{filepath}' ({error.strerror or error}), so that it is "
                f"as before; {_ADVICE}."
            ) from error

    @staticmethod
    def _write(obj: bytes, filepath, folder: str) -> None:
        handle, temporary = tempfile.mkstemp(_PARTIAL, _PREFIX, folder)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(obj)
                file.flush()
                os.fsync(file.fileno())
            # mkstemp makes a private file; give it what open() would have given.
            umask = os.umask(0)
            os.umask(umask)
            os.chmod(temporary, 0o666 & ~umask)
            os.replace(temporary, filepath)
        except BaseException:
            os.unlink(temporary)
            raise
        # The new name is on the disk when the folder is. Not every network disk can.
        with contextlib.suppress(OSError):
            handle = os.open(folder, os.O_RDONLY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)


def use_atomic_writes() -> None:
    """Makes mmengine write local files through :class:`AtomicLocalBackend`.

    For programs, not for libraries: it changes mmengine's registry of backends.
    """
    register_backend("local", AtomicLocalBackend, force=True, prefixes="")


def remove_partial(folder: str) -> None:
    """Removes what a kill while writing left in a folder that nobody writes to."""
    for entry in os.scandir(folder) if os.path.isdir(folder) else ():
        if entry.name.startswith(_PREFIX) and entry.name.endswith(_PARTIAL):
            os.remove(entry.path)


def explain_refusal(error: BaseException) -> str | None:
    """Says in one sentence that a disk takes no more, if that is what an error is."""
    if not isinstance(error, OSError) or error.errno not in _REFUSALS:
        return None
    place = f" '{error.filename}'" if error.filename else ""
    return f"Cannot write{place} ({error.strerror}); {_ADVICE}."


def save_new(checkpoint: dict, path: str) -> None:
    """``torch.save`` to a file that must not exist yet, see :func:`write_new`."""
    buffer = io.BytesIO()
    torch.save(checkpoint, buffer)
    write_new(buffer.getvalue(), path)


def write_new(data: bytes, path: str) -> None:
    """Writes a file at once or not at all.

    Raises:
        RAVLTError: If there is such a file already.
    """
    if os.path.exists(path):
        raise RAVLTError(f"'{path}' exists; name another file or remove it.")
    AtomicLocalBackend().put(data, path)
