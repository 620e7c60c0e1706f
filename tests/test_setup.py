"""What `make env` refuses, before it installs anything."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from helpers.tool_runs import ROOT


def setup_env(cwd: Path, *args: str, **variables: str) -> str:
    """Run the script, which has to fail, and return its last line."""
    done = subprocess.run(
        ["bash", ROOT / "tools" / "setup_env.sh", *args],
        cwd=cwd,
        env=os.environ | variables,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1, done.stdout + done.stderr
    assert list(cwd.iterdir()) == []
    return done.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    ("stack", "ops", "message"),
    [
        (
            "openmmlab",
            "cuda",
            "OPS=cuda is unknown; use OPS=torchvision or OPS=compiled.",
        ),
        (
            "mm",
            "compiled",
            "STACK=mm is unknown; use STACK=openmmlab or STACK=onedl.",
        ),
        (
            "onedl",
            "torchvision",
            "STACK=onedl has compiled operators only; add OPS=compiled or leave OPS "
            "out.",
        ),
    ],
)
def test_unknown_stacks_and_operators(tmp_path, stack, ops, message):
    assert setup_env(tmp_path, stack, ops, ".venv") == f"setup: {message}"


@pytest.mark.parametrize("version", ["3.9", "3.14"])
def test_unsupported_python(tmp_path, version):
    folder = tmp_path / "bin"
    folder.mkdir()
    python = folder / "python"
    numbers = version.replace(".", ", ")
    # Its own version in place of this interpreter's.
    python.write_text(f"""#!/bin/sh
[ "$1" = --version ] && echo "Python {version}.0" && exit
exec {sys.executable} -c "import sys; sys.version_info = ({numbers}, 0); $2"
""")
    python.chmod(0o755)
    cwd = tmp_path / "cwd"
    cwd.mkdir()
    line = setup_env(cwd, "openmmlab", "torchvision", ".venv", PYTHON=str(python))
    assert line == (
        f"setup: Python {version}.0 is not supported; name a Python 3.10 to 3.13, "
        f"e.g. make env PYTHON=python3.12."
    )


def test_compiling_needs_a_compiler(tmp_path):
    """The default does not: it is not even looked for."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("bash", "dirname", "sed", "head"):
        (folder / name).symlink_to(shutil.which(name))
    cwd = tmp_path / "cwd"
    cwd.mkdir()
    variables = {"PATH": str(folder), "PYTHON": sys.executable}
    line = setup_env(cwd, "openmmlab", "compiled", ".venv", **variables)
    assert line == (
        "setup: no C++ compiler; run: sudo apt-get install g++, or leave out "
        "OPS=compiled."
    )


def test_a_python_that_is_not_there(tmp_path):
    line = setup_env(tmp_path, "openmmlab", "torchvision", ".venv", PYTHON="python3.99")
    assert line.startswith("setup: python3.99 is not found; name a Python 3.10 to 3.13")


def test_an_environment_of_another_python_is_kept():
    """The user may have made it."""
    venv = ROOT / ".venv-of-a-test"
    python = venv / "bin" / "python"
    try:
        python.parent.mkdir(parents=True)
        python.write_text("#!/bin/sh\necho 3.7\n")
        python.chmod(0o755)
        line = ["bash", ROOT / "tools" / "setup_env.sh", "openmmlab", "torchvision"]
        env = os.environ | {"PYTHON": sys.executable}
        done = subprocess.run(
            [*line, venv.name], env=env, capture_output=True, text=True
        )
        assert python.exists()
    finally:
        shutil.rmtree(venv)
    version = f"{sys.version_info[0]}.{sys.version_info[1]}"
    assert done.returncode == 1
    assert done.stderr == (
        f"setup: {venv.name} holds another Python than {version}; run rm -rf "
        f"{venv.name}, then this again.\n"
    )


@pytest.mark.parametrize(
    "line", ["OPS=compild", "STACK=mm", "STACK=onedl OPS=torchvision"]
)
def test_make_knows_its_options(line):
    """Also once an environment is there."""
    done = subprocess.run(
        ["make", "env", *line.split()], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert "is unknown; use OPS=torchvision or OPS=compiled" in done.stderr
