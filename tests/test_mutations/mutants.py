"""Deliberate faults: put into a copy of the repository, and found by its tests."""

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from helpers.tool_runs import ENV, ROOT


@dataclass(frozen=True)
class Fault:
    """A mistake that somebody could make.

    Args:
        file: Where, in the repository.
        what: What is wrong then.
        old: Text of the file, to be found there once.
        new: What takes its place.
        test: What has to fail, ``test_file.py::test_name``, perhaps of one case.
    """

    file: str
    what: str
    old: str
    new: str
    test: str

    def __str__(self) -> str:
        return f"{self.file.removeprefix('ravlt/')}: {self.what}"

    def put_into(self, text: str) -> str:
        """Gives the faulty file."""
        count = text.count(self.old)
        assert count == 1, f"{self}: the old text is there {count} times\n{self.old}"
        return text.replace(self.old, self.new)

    @property
    def test_path(self) -> str:
        """As pytest takes it, from the repository's root."""
        name, _, function = self.test.partition("::")
        folders = (ROOT / "tests", ROOT / "projects")
        (path,) = (path for folder in folders for path in folder.rglob(name))
        return f"{path.relative_to(ROOT)}::{function}"


def read_table(
    folder: str, table: Mapping[str, Sequence[tuple[str, str, str, str]]]
) -> list[Fault]:
    """Turn a table into faults.

    Args:
        folder: Folder of the repository that holds the files, 'ravlt' or 'projects'.
        table: By the path of a file in that folder, rows (what, old, new, test).
    """
    return [
        Fault(f"{folder}/{file}", *row) for file, rows in table.items() for row in rows
    ]


class Nursery:
    """Runs tests of a copy of the repository, each time in a new process.

    Args:
        copy: The copy; faults may be put into its files between runs.
    """

    def __init__(self, copy: Path) -> None:
        self._output = copy.parent / "output"
        self._args = ["-x", "--tb=line", "-W", "ignore", "-p", "no:cacheprovider"]
        self._args += [f"--basetemp={copy.parent / 'tmp'}"]
        # Compiled files are told apart by seconds, and a fault may be younger.
        env = ENV | {"PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1"}
        program = copy / "tests/test_mutations/nursery.py"
        self._process = subprocess.Popen(
            [sys.executable, "-W", "ignore", program, self._output],
            cwd=copy,
            env=env,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(self, *tests: str) -> tuple[int, str]:
        """Runs tests up to the first that fails.

        Args:
            *tests: See :attr:`Fault.test_path`.

        Returns:
            Pytest's status, and the end of its output.
        """
        print(json.dumps([*self._args, *tests]), file=self._process.stdin, flush=True)
        status = int(self._process.stdout.readline())
        return status, self._output.read_text()[-3000:]

    def close(self) -> None:
        self._process.stdin.close()
        self._process.wait(60)
