"""Runs pytest in forks of one process, which has imported what takes seconds.

A program: every line of its input is a list of arguments, of its output a status. What
pytest says goes to the file that the program was given.
"""

import importlib
import json
import os
import signal
import sys
import traceback
from pathlib import Path

import pytest

SECONDS = 600  # a test in which a fault has made a loop endless

# All but what is tested.
for name in ("mmdet.apis", "mmseg.apis", "timm", "hypothesis.core"):
    importlib.import_module(name)


def be_pytest(args: list[str], output: str) -> int:
    """Runs tests with the ravlt of this folder, whatever is installed."""
    signal.alarm(SECONDS)
    file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(file, 1)
    os.dup2(file, 2)
    import ravlt

    if not Path(ravlt.__file__).is_relative_to(Path.cwd()):
        raise ImportError(f"{ravlt.__file__} is not in {Path.cwd()}.")
    return pytest.main(args)


def main() -> None:
    for line in sys.stdin:
        child = os.fork()
        if not child:
            status = pytest.ExitCode.INTERNAL_ERROR
            try:
                status = be_pytest(json.loads(line), sys.argv[1])
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                os._exit(status)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


if __name__ == "__main__":
    main()
