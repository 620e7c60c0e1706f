"""Record passed checks, so that no run repeats them on unchanged files."""

import contextlib
import hashlib
import logging
import os

from mmengine.logging import print_log

from ravlt.version import __version__

_LARGEST = 1 << 25  # bytes, of a million samples


def file_state(path: str | None) -> tuple[str, int, int] | None:
    """Return path, size and modification time of a file, to detect changes.

    Args:
        path: File on a local disk; may be empty.

    Returns:
        Absolute path, size in bytes and time of the last modification in ns; None if
        there is no such file.
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
        *parts: All that the outcome depends on: states of files and settings. Their
            ``repr`` must be the same in every process.
    """
    text = repr((__version__, *parts))
    return hashlib.blake2b(text.encode(errors="replace"), digest_size=12).hexdigest()


class PassedChecks:
    """Record of passed checks, in a file that several processes append to.

    Each line is a key and, after a space, a note. No process locks the file or rewrites
    it. After a kill, or on a network disk that mixes concurrent writes, a line may be
    incomplete. It then matches no key, and the check is repeated.

    Args:
        path: Path of the file, which need not exist; None keeps the record in this
            process only.
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
            note: Result to return from :meth:`find`, in one line.
        """
        name, text = key.encode(), note.encode()
        self._notes[name] = text
        if not self.path:
            return
        line = name + b" " + text if text else name
        try:
            os.makedirs(os.path.dirname(self.path), exist_ok=True)
            with open(self.path, "ab", buffering=0) as file:
                # The first newline ends a line that a kill has left incomplete.
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
        """Read the lines that processes have appended since the last call."""
        if not self.path:
            return
        try:
            with open(self.path, "rb") as file:
                if os.fstat(file.fileno()).st_size < self._read_bytes:
                    self._read_bytes = 0  # the file was replaced
                file.seek(self._read_bytes)
                data = file.read()
        except OSError:  # not there yet, or no file
            return
        complete = data[: data.rfind(b"\n") + 1]
        self._read_bytes += len(complete)
        self._notes.update(line.partition(b" ")[::2] for line in complete.split(b"\n"))
