"""Files that are whole or absent: a kill while writing leaves the old one."""

import os
import tempfile

from mmengine.fileio import LocalBackend, register_backend


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
