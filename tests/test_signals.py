"""The tests that send signals give the same result whatever pytest inherited."""

import signal
import subprocess
import sys

import pytest

from helpers.tool_runs import restore_default_signals

REPORT = """
import signal
print([signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)])
"""


@pytest.fixture
def inherited_as_ignored():
    """Ignore in this process what ``nohup make test &`` in a script ignores."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, signal.SIG_IGN) for number in numbers}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def report(**options) -> str:
    line = [sys.executable, "-c", REPORT]
    done = subprocess.run(line, capture_output=True, text=True, check=True, **options)
    return done.stdout.strip()


def test_a_child_has_the_default_actions(inherited_as_ignored):
    default = [signal.default_int_handler, signal.SIG_DFL, signal.SIG_DFL]
    assert report() == str([signal.SIG_IGN] * 3)
    assert report(preexec_fn=restore_default_signals) == str(default)
