"""A record of passed checks, so that no run repeats them on unchanged files."""

import contextlib
import hashlib
import logging
import os

from mmengine.logging import print_log

from ravlt.version import __version__

_LARGEST = 1 << 25  # bytes, of a million samples


def file_state(path: str | None) -> tuple[str, int, int] | None:
    """Return what changes when a file does.

    Args:
        path: File on a local disk; may be empty.

    Returns:
        Absolute path, size in bytes and time of the last change in ns; None if there
        is no such file.
    """
    if not path:
        return None
    try:
        found = os.stat(path)
    except OSError:
        return None
    return os.path.abspath(path), found.st_size, found.st_mtime_ns


def fingerprint(*parts: object) -> str:
    """Return a key for a check.

    Args:
        *parts: What the outcome depends on: states of files, settings. Their ``repr``
            must be the same in every process.
    """
    text = repr((__version__, *parts))
    return hashlib.blake2b(text.encode(errors="replace"), digest_size=12).hexdigest()


class PassedChecks:
    """Keys of passed checks, in a file that processes append to.

    Each line is a key and, after a space, a note. No process locks the file or rewrites
    it. After a kill, or on a network disk that mixes concurrent writes, a line may be
    torn; it then equals no key, and the check is repeated.

    Args:
        path: The file, which need not exist; None remembers within this process.
    """

    def __init__(self, path: str | None = None) -> None:
        self.path = path
        self._notes: dict[bytes, bytes] = {}
        self._read_bytes = 0

    def limit(self) -> None:
        """Start anew if the file is so large that reading it would take seconds.

        Paths of a job's own scratch folder, for example, are new in every job.
        """
        with contextlib.suppress(OSError):  # not there, or removed by another process
            if self.path and os.path.getsize(self.path) > _LARGEST:
                os.remove(self.path)

    @staticmethod
    def place(work_dir: str | None) -> str | None:
        """Return the file beside a work directory, which all runs there share."""
        if not work_dir:
            return None
        return os.path.join(os.path.dirname(os.path.abspath(work_dir)), ".checked_data")

    def find(self, key: str) -> str | None:
        """Return the note of a check that passed, in this process or another.

        Args:
            key: From :func:`fingerprint`.
        """
        name = key.encode()
        if name not in self._notes:
            self._read_on()
        note = self._notes.get(name)
        return None if note is None else note.decode(errors="replace")

    def add(self, key: str, note: str = "") -> None:
        """Record that a check passed.

        Args:
            key: From :func:`fingerprint`.
            note: What to remember of it, in one line.
        """
        name, text = key.encode(), note.encode()
        self._notes[name] = text
        if not self.path:
            return
        line = name + b" " + text if text else name
        try:
            os.makedirs(os.path.dirname(self.path), exist_ok=True)
            with open(self.path, "ab", buffering=0) as file:
                # The first line feed ends a line that a kill has left open.
                file.write(b"\n" + line + b"\n")
        except OSError as error:
            print_log(
                f"Cannot write '{self.path}' ({error.strerror or error}): other "
                f"processes and later runs repeat the checks of the data.",
                logger="current",
                level=logging.WARNING,
            )
            self.path = None

    def _read_on(self) -> None:
        """Read what processes have appended since the last time."""
        if not self.path:
            return
        try:
            with open(self.path, "rb") as file:
                if os.fstat(file.fileno()).st_size < self._read_bytes:
                    self._read_bytes = 0  # somebody has replaced the file
                file.seek(self._read_bytes)
                data = file.read()
        except OSError:  # not there yet, or no file
            return
        whole = data[: data.rfind(b"\n") + 1]
        self._read_bytes += len(whole)
        self._notes.update(line.partition(b" ")[::2] for line in whole.split(b"\n"))
