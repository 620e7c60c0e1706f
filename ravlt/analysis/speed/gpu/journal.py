"""Journal of a benchmark: a file of results that is complete at any time."""

import contextlib
import gc
import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from ravlt.errors import RAVLTError

# A benchmark may only be continued where these are the same.
_FIXED_KEYS = ("device", "torch", "triton", "sizes")
_MAX_STARTS = 2
_LINE_LENGTH = 200


@dataclass(frozen=True)
class Case:
    """One measurement.

    Args:
        labels: Strings and numbers that identify it within its part.
        measure: Function that returns the results; JSON must be able to hold them.
    """

    labels: Mapping
    measure: Callable[[], Mapping]


class Journal:
    """Results of one part of a benchmark, which a later run can continue.

    Args:
        path: JSON file.
        machine: Hardware and software that the results depend on.

    Raises:
        RAVLTError: If the file holds results of another machine.
    """

    def __init__(self, path: Path, machine: Mapping) -> None:
        self._path = path
        self._data = {"machine": dict(machine), "measured": [], "started": []}
        if path.exists():
            self._data = _read(path)
            before = self._data["machine"]
            for key in _FIXED_KEYS:
                if before.get(key) != machine.get(key):
                    raise RAVLTError(
                        f"'{path}' has results for {key} {before.get(key)}, and here "
                        f"it is {machine.get(key)}; name a new folder."
                    )

    @property
    def rows(self) -> list[dict]:
        """Labels and results of every measurement, in one dictionary each."""
        return rows_of(self._data)

    def begin(self, labels: Mapping) -> bool:
        """Record that a measurement starts.

        Returns:
            False if it must not: it has a result, or has ended the process twice.
        """
        labels = dict(labels)
        if any(entry["labels"] == labels for entry in self._data["measured"]):
            return False
        if self._data["started"].count(labels) == _MAX_STARTS:
            self.record(labels, {"failed": "it ended the process twice"})
            return False
        self._data["started"].append(labels)
        self._write()
        return True

    def record(self, labels: Mapping, results: Mapping) -> None:
        """Store the results of a measurement, or its error under ``failed``."""
        entry = {"labels": dict(labels), "results": dict(results)}
        self._data["measured"].append(entry)
        self._drop("started", lambda started: started == entry["labels"])

    def forget_failures(self) -> None:
        """Drop failed measurements, so that they can start again."""
        self._drop("measured", lambda entry: "failed" in entry["results"])

    def _drop(self, key: str, condition: Callable) -> None:
        self._data[key] = [entry for entry in self._data[key] if not condition(entry)]
        self._write()

    def _write(self) -> None:
        partial = self._path.with_suffix(".part")
        partial.write_text(json.dumps(self._data, indent=1))
        os.replace(partial, self._path)


def read_rows(path: Path) -> tuple[dict, list[dict]]:
    """Read the machine and the rows of a journal; both are empty without the file."""
    if not path.exists():
        return {}, []
    data = _read(path)
    return data["machine"], rows_of(data)


def _read(path: Path) -> dict:
    try:
        return json.loads(path.read_text())
    except ValueError:
        raise RAVLTError(
            f"'{path}' is not a file of results (no JSON); move or delete it."
        ) from None


def rows_of(data: Mapping) -> list[dict]:
    """Return the rows of a journal's content."""
    return [entry["labels"] | entry["results"] for entry in data["measured"]]


def run_cases(
    cases: Iterable[Case], journal: Journal, device: torch.device, end: float
) -> None:
    """Measure what a journal lacks.

    The error of a case is recorded as its result, and the next case follows.

    Args:
        cases: The measurements, the most important ones first.
        journal: Journal that receives the results.
        device: Device of the cases.
        end: Value of ``time.monotonic()`` after which no case starts.

    Raises:
        RAVLTError: If the GPU is unusable after an error, such as an illegal access.
            Only a new process can continue.
    """
    with _side_stream(device):
        for case in cases:
            if time.monotonic() > end:
                print("Time limit reached; run it again to continue.", file=sys.stderr)
                return
            if not journal.begin(case.labels):
                continue
            print(*case.labels.values(), sep=", ", file=sys.stderr)
            results = _attempt(case)
            journal.record(case.labels, results)
            gc.collect()
            if "failed" in results and not is_usable(device):
                raise RAVLTError(
                    f"The GPU is unusable after this error ({results['failed']}); "
                    f"start a new process to continue."
                )
            if device.type == "cuda":
                torch.cuda.empty_cache()


def _attempt(case: Case) -> Mapping:
    try:
        return case.measure()
    except Exception as error:
        if not isinstance(error, RAVLTError):
            traceback.print_exc()
        return {"failed": shorten(f"{type(error).__name__}: {error}")}


def shorten(text: str) -> str:
    """Shorten a message to one line."""
    return " ".join(text.split())[:_LINE_LENGTH]


def is_usable(device: torch.device) -> bool:
    """Return True if a device still computes."""
    try:
        return torch.ones(1, device=device).item() == 1
    except RuntimeError:
        return False


def _side_stream(device: torch.device) -> contextlib.AbstractContextManager:
    """Return a context with a stream of its own, because graphs need one.

    CUDA graphs cannot capture the default stream. A backward pass runs on the stream of
    its forward pass, so a forward pass before the capture needs the new stream, too.
    """
    if device.type == "cuda":
        return torch.cuda.stream(torch.cuda.Stream(device))
    return contextlib.nullcontext()
