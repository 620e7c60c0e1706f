"""Files that are whole or absent: a kill while writing leaves the old one."""

import io
import os
import tempfile

import torch
from mmengine.fileio import LocalBackend, register_backend

from ravlt.errors import RAVLTError


class AtomicLocalBackend(LocalBackend):
    """mmengine's local backend, which writes beside the file and then renames."""

    def put(self, obj: bytes, filepath) -> None:
        """Writes bytes; the file changes at once or not at all."""
        folder = os.path.dirname(os.path.abspath(filepath))
        os.makedirs(folder, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=folder, suffix=".part")
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


def use_atomic_writes() -> None:
    """Makes mmengine write local files through :class:`AtomicLocalBackend`.

    For programs, not for libraries: it changes mmengine's registry of backends.
    """
    register_backend("local", AtomicLocalBackend, force=True, prefixes="")


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
