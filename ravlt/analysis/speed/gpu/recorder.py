"""A pytest plugin that records the result of every test in a journal.

``pytest -p ravlt.analysis.speed.gpu.recorder --journal FILE`` runs the tests that have
no result in the file. Its exit status is 0, even if tests fail, unless tests remain for
another process.
"""

import time
from pathlib import Path

import torch

from ravlt.analysis.speed.timing import describe_machine

from .journal import Journal, is_usable, shorten

# Exit statuses of pytest after which no other process has to continue: all tests
# passed, some failed, the session was stopped, no test was left.
_COMPLETE = (0, 1, 2, 5)


def pytest_addoption(parser) -> None:
    """Add the options of this plugin."""
    group = parser.getgroup("journal")
    group.addoption("--journal", help="JSON file of results, continued if it exists")
    group.addoption("--seconds", type=float, help="time after which no test starts")


def pytest_configure(config) -> None:
    """Register the recorder if ``--journal`` is given."""
    path = config.getoption("journal")
    if path:
        recorder = _Recorder(Path(path), config.getoption("seconds"))
        config.pluginmanager.register(recorder, "recorder")


class _Recorder:
    """Hooks of pytest that record results.

    Args:
        path: File of the journal.
        seconds: Time after which no test starts; None sets no limit.
    """

    def __init__(self, path: Path, seconds: float | None) -> None:
        has_gpu = torch.cuda.is_available()
        self._device = torch.device("cuda" if has_gpu else "cpu")
        self._journal = Journal(path, describe_machine(self._device))
        self._end = float("inf") if seconds is None else time.monotonic() + seconds
        self._reports: list = []
        self._is_usable = True

    def pytest_sessionstart(self, session) -> None:
        """Store the session, which other hooks may end."""
        self._session = session

    def pytest_collectreport(self, report) -> None:
        """Record a file that cannot be imported."""
        if report.failed and self._journal.begin({"test": report.nodeid}):
            self._journal.record({"test": report.nodeid}, _results([report]))

    def pytest_collection_modifyitems(self, config, items: list) -> None:
        """Deselect the tests that have a result."""
        known = {row["test"] for row in self._journal.rows}
        config.hook.pytest_deselected(items=[i for i in items if i.nodeid in known])
        items[:] = [item for item in items if item.nodeid not in known]

    def pytest_runtest_protocol(self, item) -> bool | None:
        """Skip a test that has ended the process twice."""
        return None if self._journal.begin({"test": item.nodeid}) else True

    def pytest_runtest_logreport(self, report) -> None:
        """Collect the reports of set-up, call and tear-down."""
        self._reports.append(report)

    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        """Record a test, and end the session if no other test may start."""
        results, self._reports = _results(self._reports), []
        self._journal.record({"test": nodeid}, results)
        if "failed" in results and not is_usable(self._device):
            self._is_usable = False
            self._session.shouldfail = "the GPU is unusable after this test"
        elif time.monotonic() > self._end:
            self._session.shouldstop = "time limit reached; run it again to continue"

    def pytest_sessionfinish(self, session) -> None:
        """Set the exit status."""
        if self._is_usable and session.exitstatus in _COMPLETE:
            session.exitstatus = 0


def _results(reports: list) -> dict:
    results = {"seconds": sum(getattr(report, "duration", 0.0) for report in reports)}
    for report in reports:
        if report.failed:
            crash = getattr(report.longrepr, "reprcrash", None)
            # Without a crash entry (errors of an import), the message is the last line.
            text = crash.message if crash else str(report.longrepr).splitlines()[-1]
            return results | {"failed": shorten(text)}
    outcome = "skipped" if any(report.skipped for report in reports) else "passed"
    return results | {"outcome": outcome}
