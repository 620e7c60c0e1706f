"""The tests' own machinery: signals of child processes, and the marker `gpu`."""

import signal
import subprocess
import sys

import pytest

from helpers.tool_runs import ENV, ROOT, TESTS, restore_default_signals

pytestmark = pytest.mark.integration

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


GPU_TESTS = """
import pytest

@pytest.mark.gpu
@pytest.mark.parametrize("number", range(3))
def test_on_a_gpu(number):
    raise AssertionError("ran without a GPU")

def test_on_a_cpu():
    pass
"""


@pytest.mark.integration
def test_the_summary_counts_gpu_tests_that_did_not_run(tmp_path):
    path = tmp_path / "test_devices.py"
    path.write_text(GPU_TESTS)
    line = [sys.executable, "-m", "pytest", "-p", "conftest", "-c", "/dev/null"]
    done = subprocess.run(
        [*line, "-n", "1", path],
        env=ENV | {"PYTHONPATH": f"{ROOT}:{TESTS}"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout
    assert "1 passed, 3 skipped" in done.stdout
    assert " 3 GPU TESTS DID NOT RUN: torch finds no CUDA device " in done.stdout
