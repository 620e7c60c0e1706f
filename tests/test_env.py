"""Every known mismatch between packages has a line with the command that fixes it."""

import re
import subprocess
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path

import mmcv.ops
import pytest
import torch

from helpers.tool_runs import ENV, ROOT, SEG
from ravlt.env import cuda, imports, operators, problems, text, versions
from ravlt.env import report as report_module

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
def test_too_new_mmcv(find, distribution, version, refused):
    line = (
        f"{distribution} {version} is refused by mmdet and mmseg, which take only "
        f"mmcv<2.2: run pip uninstall -y {distribution}, then {LITE}."
    )
    assert find(SOUND | {"mmcv": (distribution, version)}) == [line] * refused


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
    found = SOUND | {"mmcv": ("mmcv", "2.2.0")}
    lines = find(found, ImportError("x"), ["ftfy"])
    assert len(lines) == 2 and all("\n" not in line for line in lines)


# --------------------------------------------------------------------------------- GPUs


NVIDIA_SMI = """#!/bin/sh
case "$1" in
  --query-gpu=*) printf '{capabilities}' ;;
  *) echo "| Driver Version: 535.104.05    CUDA Version: {cuda}     |" ;;
esac
"""


@pytest.fixture
def gpu(monkeypatch, tmp_path):
    """Put a driver, which is a script, beside a build of torch."""

    def gpu(
        driver_cuda: str | None,
        torch_cuda: str | None,
        available: bool,
        capabilities: str = "",
        kernels: tuple[str, ...] = (),
    ) -> None:
        if driver_cuda is not None:
            script = tmp_path / "nvidia-smi"
            script.write_text(
                NVIDIA_SMI.format(cuda=driver_cuda, capabilities=capabilities)
            )
            script.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
        monkeypatch.setattr(torch.version, "cuda", torch_cuda)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: available)
        monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: list(kernels))

    return gpu


def install_from(index: str) -> str:
    return (
        f"run pip install --force-reinstall torch torchvision --index-url "
        f"https://download.pytorch.org/whl/{index}."
    )


@pytest.mark.parametrize(
    ("supported", "fix"),
    [
        ("12.2", f"update the driver, or {install_from('cu126')}"),
        ("10.2", "update the driver."),
    ],
)
def test_driver_too_old_for_torch(gpu, supported, fix):
    gpu(supported, "13.2", available=False)
    assert cuda.find_driver() == ("535.104.05", supported)
    assert cuda.cuda_problem() == (
        f"torch {torch.__version__} was built for CUDA 13.2, but driver 535.104.05 "
        f"runs CUDA up to {supported}: {fix}"
    )


def test_torch_without_cuda_beside_a_gpu(gpu):
    gpu("13.0", None, available=False)
    assert cuda.cuda_problem() == (
        f"torch {torch.__version__} was built without CUDA: {install_from('cu130')}"
    )


@pytest.mark.parametrize(
    ("driver", "built", "available"),
    [
        ("12.2", "12.8", False),  # CUDA 12 runs on every driver of CUDA 12
        ("13.0", "12.8", False),  # hidden by CUDA_VISIBLE_DEVICES, for example
        (None, "13.2", False),
        ("12.2", "13.2", True),  # with NVIDIA's forward compatibility package
    ],
)
def test_no_cuda_problem(gpu, driver, built, available):
    gpu(driver, built, available)
    assert cuda.cuda_problem() is None


@pytest.mark.parametrize(
    ("capabilities", "kernels", "missing"),
    [
        ("7.0\\n", ("sm_75", "sm_90", "compute_90"), "7.0"),
        ("9.0\\n6.1\\n", ("sm_75", "sm_90"), "6.1"),
        ("8.6\\n", ("sm_80",), None),
        ("12.0\\n", ("sm_80", "sm_90"), "12.0"),
        ("12.0\\n", ("sm_80", "compute_90"), None),
        ("10.3\\n", ("sm_75", "sm_100a"), None),
        ("[N/A]\\n", ("sm_75",), None),
    ],
)
def test_gpu_without_kernels_in_torch(gpu, capabilities, kernels, missing):
    gpu("13.0", "13.0", True, capabilities, kernels)
    expected = (
        f"torch {torch.__version__} has no kernels for a GPU of compute capability "
        f"{missing}: {install_from('cu126')}"
    )
    assert cuda.cuda_problem() == (expected if missing else None)


def test_a_driver_that_does_not_answer(monkeypatch, gpu):
    gpu("13.0", None, available=False)

    def hang(*args, timeout: float, **kwargs):
        raise subprocess.TimeoutExpired("nvidia-smi", timeout)

    monkeypatch.setattr(cuda.subprocess, "run", hang)
    assert cuda.find_driver() is None and cuda.cuda_problem() is None


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


# ----------------------------------------------------------------------------- versions


def test_versions_outside_of_the_tested_range_warn(monkeypatch):
    monkeypatch.setitem(versions.TESTED, "torch", ("1.0", "1.13"))
    (line,) = versions.version_warnings()
    assert line == (
        f"torch {torch.__version__} was not tested with ravlt: 1.0 to 1.13 were, so "
        f"run the tests (make test) before you rely on it."
    )


@pytest.mark.parametrize(
    ("version", "expected"),
    [("2.15.0", (2, 15)), ("2.10.0+cu128", (2, 10)), ("3.0.0rc1", (3, 0))],
)
def test_release(version, expected):
    assert text.release(version) == expected


def test_tested_range_ends_at_the_pin():
    pins = (ROOT / "constraints" / "torchvision.txt").read_text()
    newest = re.search(r"^torch==(\S+?);", pins, re.MULTILINE)[1]
    assert text.release(newest) == text.release(versions.TESTED["torch"][1])
    required = (ROOT / "setup.cfg").read_text()
    assert f"python_requires = >={versions.TESTED['python'][0]}\n" in required


# --------------------------------------------------------------------------- the report


def test_this_environment_is_sound():
    assert operators.import_error() is None
    assert problems.find_problems() == problems.find_warnings() == []
    found = versions.find_versions()
    assert list(found) == ["mmengine", "mmcv", "mmdet", "mmseg"]
    report = report_module.report().splitlines()
    assert [line.split()[0] for line in report[:3]] == ["ravlt", "python", "torch"]
    assert torch.__version__ in report[2]
    assert f"{'mmcv':<12}{found['mmcv'][1]} ({found['mmcv'][0]})" in report
    assert not any(line.startswith(("problem", "warning")) for line in report)


def test_operators_by_name():
    (running,) = (
        line
        for line in report_module.report().splitlines()
        if line.startswith("operators")
    )
    assert "on cpu: nms, soft_nms, nms_match, roi_align" in running
    if versions.is_installed("mmcv-lite"):
        # The package has all of them.
        errors = operators.probe_operators("cpu")
        assert len(errors) == 20 and errors == dict.fromkeys(errors)


def test_an_operator_that_fails_is_reported(monkeypatch):
    def fail(*args, **kwargs):
        raise RuntimeError("no kernel image is available\nfor execution")

    monkeypatch.setattr(mmcv.ops, "roi_align", fail)
    report = report_module.report().splitlines()
    assert f"{'':<12}not on cpu: roi_align (no kernel image is available)" in report


@pytest.mark.gpu
def test_operators_on_the_gpu():
    errors = operators.probe_operators("cuda:0")
    assert len(errors) == 20 and errors == dict.fromkeys(errors)


def test_warnings_and_problems_end_the_report(monkeypatch):
    monkeypatch.setattr(report_module, "find_warnings", lambda: ["a is new."])
    monkeypatch.setattr(report_module, "find_problems", lambda: ["b is gone."])
    assert report_module.report().splitlines()[-2:] == [
        "warning     a is new.",
        "problem     b is gone.",
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
