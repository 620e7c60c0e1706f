"""Every known mismatch between packages has a line with the command that fixes it."""

import subprocess
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path

import mmcv.ops
import pytest
import torch

from helpers.tool_runs import ENV, ROOT, SEG
from ravlt.env import problems

SOUND = {
    "mmengine": ("mmengine", "0.10.7"),
    "mmcv": ("mmcv-lite", "2.1.0"),
    "mmdet": ("mmdet", "3.3.0"),
    "mmseg": ("mmsegmentation", "1.2.2"),
}
COMPILED = SOUND | {"mmcv": ("mmcv", "2.1.0")}
FORKS = {
    "mmengine": ("onedl-mmengine", "0.10.9"),
    "mmcv": ("onedl-mmcv", "2.3.2"),
    "mmdet": ("onedl-mmdetection", "3.5.0"),
    "mmseg": ("onedl-mmsegmentation", "1.3.0"),
}
LITE = "pip install './packages/mmops[lite]' in a checkout of ravlt"
REBUILD = (
    "MMCV_WITH_OPS=1 pip install --force-reinstall --no-deps --no-cache-dir "
    "--no-build-isolation --no-binary :all:"
)


@pytest.fixture
def find(monkeypatch):
    """Problems of a made-up environment."""

    def find(found=SOUND, error=None, absent=(), also=()) -> list[str]:
        installed = {distribution for distribution, _ in found.values()} | set(also)
        monkeypatch.setattr(problems, "find_versions", lambda: found)
        monkeypatch.setattr(problems, "is_installed", installed.__contains__)
        monkeypatch.setattr(problems, "import_error", lambda: error)

        def find_spec(name: str) -> ModuleSpec | None:
            return None if name in absent else ModuleSpec(name, None)

        monkeypatch.setattr(problems.importlib.util, "find_spec", find_spec)
        return problems.find_problems()

    return find


@pytest.mark.parametrize("found", [SOUND, COMPILED, FORKS])
def test_sound_environments(find, found):
    assert find(found) == []


def test_absent_hosts(find):
    found = {name: SOUND[name] for name in ("mmengine", "mmcv")}
    # One line is enough: without them nothing else can be judged.
    assert find(found, ImportError("x"), ["ftfy"]) == [
        "mmdet, mmseg not installed: run make env, or pip install 'ravlt[openmmlab]'."
    ]


def test_absent_mmcv(find):
    """The extra does not bring it: it would overwrite a compiled one."""
    found = {name: SOUND[name] for name in ("mmengine", "mmdet", "mmseg")}
    assert find(found, ImportError("x")) == [f"mmcv not installed: run {LITE}."]


@pytest.mark.parametrize("distribution", ["mmcv", "mmcv-lite"])
@pytest.mark.parametrize(
    ("version", "refused"),
    [("2.1.0", False), ("2.2.0", True), ("2.10.1", True), ("3.0.0rc1", True)],
)
def test_too_new_mmcv(find, monkeypatch, distribution, version, refused):
    def refuse(name: str) -> None:
        assert name == "mmdet"
        raise AssertionError("MMCV==2.2.0 is used but incompatible.")

    monkeypatch.setattr(problems.importlib, "import_module", refuse)
    line = (
        f"{distribution} {version} is refused by mmdet and mmseg, which take only "
        f"mmcv<2.2: run pip uninstall -y {distribution}, then {LITE}."
    )
    assert find(SOUND | {"mmcv": (distribution, version)}) == [line] * refused


@pytest.mark.parametrize("version", ["2.1.0", "2.2.0"])
def test_hosts_that_were_patched_for_a_newer_mmcv(find, monkeypatch, version):
    """Both import, as those of this environment do."""
    found = SOUND | {"mmcv": ("mmcv", version)}
    assert find(found) == []
    assert find(found, ImportError("x"))  # its operators still have to load
    monkeypatch.setattr(problems, "import_error", lambda: None)
    monkeypatch.setattr(problems, "version_warnings", lambda: [])
    monkeypatch.setattr(problems, "cuda_problem", lambda: None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    line = (
        "mmcv 2.2.0 is newer than mmdet and mmseg allow (mmcv<2.2), but they import: "
        "run the tests (make test) before you rely on it."
    )
    assert problems.find_warnings() == [line] * (version == "2.2.0")
    monkeypatch.setattr(problems, "find_versions", dict)  # the report without mmcv
    assert problems.find_warnings() == []


def test_too_new_mmcv_is_right_for_the_forks(find):
    assert find(FORKS | {"mmcv": ("onedl-mmcv", "2.2.0")}) == []


def test_two_mmcv(find):
    # The operators may fail as well, but that is no second problem.
    assert find(COMPILED, ImportError("x"), also=["mmcv-lite"]) == [
        f"mmcv and mmcv-lite overwrite each other's files: run pip uninstall -y mmcv "
        f"mmcv-lite, then {LITE}."
    ]


@pytest.mark.parametrize("missing", ["mmcv", "mmcv.ops"])
def test_files_that_went_with_another_mmcv(find, missing):
    error = ModuleNotFoundError(f"No module named {missing!r}", name=missing)
    assert find(SOUND, error) == [
        f"Files of mmcv-lite 2.1.0 are missing, as after another mmcv was uninstalled: "
        f"run pip uninstall -y mmcv-lite, then {LITE}."
    ]


def test_mmcv_without_operators(find):
    name = "mmcv._ext"
    error = ModuleNotFoundError(f"No module named {name!r}", name=name)
    assert find(SOUND, error) == [f"mmcv-lite 2.1.0 has no operators: run {LITE}."]
    assert find(COMPILED, error) == [
        f"mmcv 2.1.0 has no operators: run pip uninstall -y mmcv, then {LITE}."
    ]
    assert find(FORKS, error) == [
        f"onedl-mmcv 2.3.2 has no operators: run {REBUILD} onedl-mmcv."
    ]


def test_operators_of_another_torch(find):
    error = ImportError(
        "cannot load\n/x/_ext.so: undefined symbol: _ZN3c10\n"
        "Exception raised from x\nframe #1: __libc_start_main"
    )
    assert find(COMPILED, error) == [
        f"mmcv 2.1.0's operators do not load, most likely because they were built "
        f"for another torch than {torch.__version__} (/x/_ext.so: undefined symbol: "
        f"_ZN3c10): run pip uninstall -y mmcv, then {LITE}."
    ]


@pytest.mark.parametrize("error", [RuntimeError(), RuntimeError("\n")])
def test_an_error_without_text(find, error):
    (line,) = find(SOUND, error)
    assert "(RuntimeError)" in line


def test_missing_requirements_of_the_hosts(find):
    absent = ["ftfy", "regex", "pkg_resources"]
    lines = [
        "mmseg needs ftfy: run pip install ftfy.",
        "mmseg needs regex: run pip install regex.",
        "mmengine needs pkg_resources: run pip install 'setuptools<82'.",
    ]
    assert find(absent=absent) == lines
    assert find(FORKS, absent=absent) == lines[:2]


def test_several_problems(find):
    found = SOUND | {"mmcv": ("mmcv", "2.1.0")}
    lines = find(found, ImportError("x"), ["ftfy"])
    assert len(lines) == 2 and all("\n" not in line for line in lines)


@pytest.mark.parametrize(
    ("compiled_for", "distribution", "fix"),
    [
        ("not available", "mmcv", f"pip uninstall -y mmcv, then {LITE}"),
        (
            "not available",
            "mmcv-lite",
            "pip install --force-reinstall torch torchvision",
        ),
        ("13.0", "mmcv-lite", None),
    ],
)
def test_operators_without_cuda_beside_a_gpu(
    monkeypatch, compiled_for, distribution, fix
):
    """Such as a wheel that was built on a login node."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(mmcv.ops, "get_compiling_cuda_version", lambda: compiled_for)
    found = {"mmcv": (distribution, "2.1.0")}
    monkeypatch.setattr(problems, "find_versions", lambda: found)
    monkeypatch.setattr(problems, "version_warnings", lambda: [])
    monkeypatch.setattr(problems, "cuda_problem", lambda: None)
    line = (
        f"The operators of {distribution} 2.1.0 have no CUDA kernels, so roi_align "
        f"and others fail on the GPU: run {fix}."
    )
    assert problems.find_warnings() == ([line] if fix else [])


def test_operators_on_a_gpu_of_amd(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.version, "cuda", None)
    name = "get_compiling_cuda_version"
    monkeypatch.setattr(mmcv.ops, name, lambda: "not available")
    monkeypatch.setattr(problems, "cuda_problem", lambda: None)
    assert problems.find_warnings() == []


# In a process of its own, before anything is imported: hides modules and distributions.
HIDE = """
import importlib.abc, importlib.metadata, importlib.util, sys

class Hider(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name in {names!r}:
            raise ModuleNotFoundError("No module named " + name, name=name)

def without(function, nothing):
    def hidden(name, *args):
        return nothing(name) if name in {names!r} else function(name, *args)
    return hidden

def raise_not_found(name):
    raise importlib.metadata.PackageNotFoundError(name)

sys.meta_path.insert(0, Hider())
importlib.util.find_spec = without(importlib.util.find_spec, lambda name: None)
importlib.metadata.version = without(importlib.metadata.version, raise_not_found)
"""


@pytest.mark.integration
@pytest.mark.parametrize(
    ("tool", "hidden", "expected"),
    [
        ("train.py", ["ftfy"], "error: mmseg needs ftfy: run pip install ftfy."),
        (
            "test.py",
            ["mmcv._ext"],
            "has no operators: run",
        ),
        (
            "train.py",
            ["mmdet", "onedl-mmdetection"],
            "error: mmdet not installed: run make env, or pip install 'ravlt[open",
        ),
    ],
)
def test_tools_say_it_in_one_line(tmp_path: Path, tool, hidden, expected):
    (tmp_path / "sitecustomize.py").write_text(HIDE.format(names=hidden))
    line = [sys.executable, ROOT / "tools" / tool, SEG] + ["x"] * (tool == "test.py")
    path = f"{tmp_path}:{ENV.get('PYTHONPATH', '')}"
    done = subprocess.run(
        line,
        cwd=tmp_path,
        env=ENV | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    last = done.stderr.splitlines()[-1]
    assert last.startswith("error: ") and expected in last
