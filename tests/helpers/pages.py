"""Pages of docs/ whose commands run as they stand."""

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from helpers.tool_runs import ENV, ROOT

# A block of `bash` runs, a block of `python` is the file that the line before it names.
# Blocks of `sh` are for other machines: downloads, several GPUs, clusters.
_BLOCK = re.compile(r"(?:`(\S+\.py)`:\n\n)?```(bash|python)\n(.*?)```", re.DOTALL)


def run_page(
    page: str,
    cwd: Path,
    python_path: Path,
    adapt: Callable[[str], str] = lambda text: text,
) -> str:
    """Run the commands of a page in a folder, and return what they print.

    Args:
        page: Its name in docs/.
        cwd: Working directory; files of the page are written there.
        python_path: Where ``import ravlt`` finds the package.
        adapt: Changes a command block, for example to smaller models.
    """
    script = ["set -e"]
    for name, kind, text in _BLOCK.findall((ROOT / "docs" / page).read_text()):
        assert (kind == "python") == bool(name)
        if name:
            (cwd / name).write_text(text)
        else:
            script.append(adapt(text))
    # Programs of this test's interpreter come first.
    env = ENV | dict(
        PATH=f"{Path(sys.executable).parent}:{ENV['PATH']}",
        PYTHONPATH=str(python_path),
        PYTHONWARNINGS="ignore",
    )
    done = subprocess.run(
        ["bash", "-c", "\n".join(script)],
        cwd=cwd,
        env=env,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout
