"""Where `import ravlt` fails on another package, its last line is the fix."""

import re
import subprocess
import sys

import pytest

from helpers.tool_runs import ENV, ROOT
from ravlt.env import imports


def test_without_mmengine(monkeypatch, tmp_path):
    """Mostly the environment was not entered."""
    monkeypatch.setattr(imports, "__file__", str(tmp_path / "ravlt/env/imports.py"))

    def explain() -> str:
        with pytest.raises(ImportError) as raised:
            imports.require_imports()
        return str(raised.value)

    monkeypatch.setitem(sys.modules, "mmengine", None)
    either = ", or [onedl] for the maintained forks."
    start = "ravlt needs mmengine: run"
    assert explain() == f"{start} pip install 'ravlt[openmmlab]'{either}"
    (tmp_path / "setup.cfg").touch()
    assert explain() == (
        f"{start} make env in {tmp_path}, or there pip install -e '.[openmmlab]'"
        f"{either}"
    )
    venv = tmp_path / ".venv"
    venv.mkdir()
    (venv / ".ready").touch()
    assert explain() == f"{start} source {venv}/bin/activate."
    monkeypatch.setattr(sys, "prefix", str(venv))
    assert explain() == (
        "ravlt needs mmengine, and make env did not finish: run it again."
    )


BROKEN = {
    "torchvision": 'raise RuntimeError("operator torchvision::nms does not exist")',
    "cv2": 'raise ImportError("libGL.so.1: cannot open shared object file")',
    "timm": 'raise ImportError("x")',
}


@pytest.mark.integration
@pytest.mark.parametrize(
    ("module", "expected"),
    [
        (
            "torchvision",
            r"torchvision does not load beside torch [\d.+cu]+ \(operator "
            r"torchvision::nms does not exist\): run pip install --force-reinstall "
            r"--no-deps 'torchvision==0\.\d+\.\*', from the same index as torch\.",
        ),
        (
            "cv2",
            r"OpenCV does not load \(libGL.so.1: cannot open shared object file\): run "
            r"pip uninstall -y opencv-python, then pip install .*-headless\.",
        ),
        ("timm", r"timm does not load \(x\): run pip install 'timm>=1\.0'\."),
    ],
)
def test_a_package_that_does_not_load(tmp_path, module, expected):
    """The last line of what `import ravlt` prints is the fix."""
    (tmp_path / f"{module}.py").write_text(BROKEN[module])
    path = f"{tmp_path}:{ENV.get('PYTHONPATH', '')}"
    done = subprocess.run(
        [sys.executable, "-m", "ravlt.env"],
        env=ENV | {"PYTHONPATH": path},
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert re.fullmatch(f"ImportError: {expected}", last), last
