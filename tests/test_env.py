"""Every known mismatch between the packages has a line that says how to mend it."""

import subprocess
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest
import torch

from helpers.tool_runs import ENV, ROOT, SEG
from ravlt import env

SOUND = {
    "mmengine": ("mmengine", "0.10.7"),
    "mmcv": ("mmcv", "2.1.0"),
    "mmdet": ("mmdet", "3.3.0"),
    "mmseg": ("mmsegmentation", "1.2.2"),
}
FORKS = {
    "mmengine": ("onedl-mmengine", "0.10.9"),
    "mmcv": ("onedl-mmcv", "2.3.2"),
    "mmdet": ("onedl-mmdetection", "3.5.0"),
    "mmseg": ("onedl-mmsegmentation", "1.3.0"),
}
REBUILD = (
    "MMCV_WITH_OPS=1 pip install --force-reinstall --no-deps --no-cache-dir "
    "--no-build-isolation --no-binary :all:"
)


@pytest.fixture
def problems(monkeypatch):
    """Problems of a made-up environment."""

    def problems(found=SOUND, error=None, absent=()) -> list[str]:
        monkeypatch.setattr(env, "find_versions", lambda: found)
        monkeypatch.setattr(env, "ops_error", lambda: error)

        def find_spec(name: str) -> ModuleSpec | None:
            return None if name in absent else ModuleSpec(name, None)

        monkeypatch.setattr(env.importlib.util, "find_spec", find_spec)
        return env.find_problems()

    return problems


@pytest.mark.parametrize("found", [SOUND, FORKS], ids=["openmmlab", "onedl"])
def test_sound_environments(problems, found):
    assert problems(found) == []


def test_absent_hosts(problems):
    found = {name: SOUND[name] for name in ("mmengine", "mmcv")}
    # One line is enough: without them nothing else can be judged.
    assert problems(found, ImportError("x"), ["ftfy"]) == [
        "mmdet, mmseg not installed: run pip install 'ravlt[openmmlab]' or make env."
    ]


@pytest.mark.parametrize(
    ("version", "refused"),
    [("2.1.0", False), ("2.2.0", True), ("2.10.1", True), ("3.0.0rc1", True)],
)
def test_too_new_mmcv(problems, version, refused):
    line = (
        f"mmcv {version} is refused by mmdet and mmseg, which take only mmcv<2.2: run "
        f"{REBUILD} 'mmcv==2.1.0'."
    )
    assert problems(SOUND | {"mmcv": ("mmcv", version)}) == [line] * refused


def test_too_new_mmcv_is_right_for_the_forks(problems):
    assert problems(FORKS | {"mmcv": ("onedl-mmcv", "2.2.0")}) == []


def test_mmcv_without_ops(problems):
    error = ModuleNotFoundError("No module named 'mmcv._ext'")
    assert problems(SOUND, error, ["mmcv._ext"]) == [
        f"mmcv 2.1.0 has no compiled ops: run {REBUILD} mmcv==2.1.0."
    ]
    assert problems(FORKS, error, ["mmcv._ext"]) == [
        f"onedl-mmcv 2.3.2 has no compiled ops: run {REBUILD} onedl-mmcv==2.3.2."
    ]


def test_mmcv_lite(problems):
    found = SOUND | {"mmcv": ("mmcv-lite", "2.1.0")}
    assert problems(found, ImportError("x"), ["mmcv._ext"]) == [
        f"mmcv-lite 2.1.0 has no compiled ops: pip uninstall mmcv-lite, then {REBUILD} "
        f"mmcv==2.1.0."
    ]


def test_ops_of_another_torch(problems):
    error = ImportError("cannot load\n/x/_ext.so: undefined symbol: _ZN3c10")
    assert problems(SOUND, error) == [
        f"mmcv 2.1.0's ops do not load, most likely because they were built for "
        f"another torch than {torch.__version__} (/x/_ext.so: undefined symbol: "
        f"_ZN3c10): run {REBUILD} mmcv==2.1.0."
    ]


@pytest.mark.parametrize("error", [RuntimeError(), RuntimeError("\n")])
def test_ops_error_without_words(problems, error):
    (line,) = problems(SOUND, error)
    assert "(RuntimeError)" in line


def test_missing_requirements_of_mmseg(problems):
    assert problems(absent=["ftfy", "regex"]) == [
        "mmseg needs ftfy: run pip install ftfy.",
        "mmseg needs regex: run pip install regex.",
    ]


def test_several_problems(problems):
    found = SOUND | {"mmcv": ("mmcv", "2.2.0")}
    lines = problems(found, ImportError("x"), ["ftfy"])
    assert len(lines) == 3 and all("\n" not in line for line in lines)


def test_this_environment_is_sound():
    assert env.ops_error() is None
    assert env.find_problems() == []
    found = env.find_versions()
    assert list(found) == ["mmengine", "mmcv", "mmdet", "mmseg"]
    report = env.report().splitlines()
    assert [line.split()[0] for line in report[:3]] == ["ravlt", "python", "torch"]
    assert torch.__version__ in report[2]
    assert f"{'mmcv':<10} {found['mmcv'][1]} ({found['mmcv'][0]})" in report
    assert "mmcv ops   load" in report
    assert not any(line.startswith("problem") for line in report)


def test_problems_end_the_report(monkeypatch):
    monkeypatch.setattr(env, "find_problems", lambda: ["a is old.", "b is gone."])
    assert env.report().splitlines()[-2:] == [
        "problem    a is old.",
        "problem    b is gone.",
    ]


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
            "has no compiled ops: run MMCV_WITH_OPS=1 pip install",
        ),
        (
            "train.py",
            ["mmdet", "onedl-mmdetection"],
            "error: mmdet not installed: run pip install 'ravlt[open",
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
