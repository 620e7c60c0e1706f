"""What the wheel holds, and what is left after it is uninstalled."""

import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """Build the wheel from a copy: a build leaves files in its folder."""
    source = tmp_path_factory.mktemp("wheel") / "source"
    ignore = shutil.ignore_patterns("build", "*.egg-info", "__pycache__", "tests")
    shutil.copytree(ROOT, source, ignore=ignore)
    line = [sys.executable, "-m", "pip", "wheel", "-q", str(source), "--no-deps"]
    line += ["--no-build-isolation", "--no-index", "-w", str(source.parent)]
    subprocess.run(line, check=True)
    (path,) = source.parent.glob("*.whl")
    return path


def test_the_wheel_adds_one_file_to_mmcv(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert [name for name in names if name.startswith("mmcv/")] == ["mmcv/_ext.py"]
    package = {f"ravlt_mmops/{p.name}" for p in ROOT.glob("src/ravlt_mmops/*.py")}
    assert {name for name in names if name.startswith("ravlt_mmops/")} == package
    assert any(name.endswith("licenses/LICENSE") for name in names)


def test_install_and_uninstall(wheel, tmp_path):
    venv.create(tmp_path / "venv")
    python = tmp_path / "venv" / "bin" / "python"
    line = [str(python), "-c", "import site; print(site.getsitepackages()[0])"]
    site = Path(subprocess.check_output(line, text=True).strip())
    mmcv = site / "mmcv"  # in place of mmcv-lite
    mmcv.mkdir()
    (mmcv / "__init__.py").touch()
    before = sorted(site.rglob("*"))

    def pip(*args: str) -> None:
        line = [sys.executable, "-m", "pip", "-q", "--python", str(python), *args]
        subprocess.run(line, check=True)

    pip("install", "--no-deps", "--no-index", "--ignore-installed", str(wheel))
    assert (mmcv / "_ext.py").is_file() and (site / "ravlt_mmops/nms.py").is_file()
    pip("uninstall", "-y", "ravlt-mmops")
    left = [path for path in site.rglob("*") if "__pycache__" not in path.parts]
    assert sorted(left) == before
