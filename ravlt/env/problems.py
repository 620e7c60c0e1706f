"""The known mismatches between the packages, and the line that fixes each."""

import importlib
import importlib.util

import torch

from .cuda import cuda_problem
from .operators import import_error
from .text import reason, release
from .versions import find_versions, is_installed, version_warnings

_HOSTS = ("mmengine", "mmcv", "mmdet", "mmseg")
_INSTALL_LITE = "pip install './packages/mmops[lite]' in a checkout of ravlt"
_REBUILD_FORK = (
    "MMCV_WITH_OPS=1 pip install --force-reinstall --no-deps --no-cache-dir "
    "--no-build-isolation --no-binary :all: onedl-mmcv"
)


def find_problems() -> list[str]:
    """Look for what keeps the hosts from running at all.

    Returns:
        One sentence for each problem, with the command that fixes it.
    """
    found = find_versions()
    absent = [name for name in _HOSTS if name not in found]
    if absent == ["mmcv"]:
        return [f"mmcv not installed: run {_INSTALL_LITE}."]
    if absent:
        return [
            f"{', '.join(absent)} not installed: run make env, or pip install "
            f"'ravlt[openmmlab]'."
        ]
    problems = _operator_problems(found)
    needed = [("mmseg", "ftfy", "ftfy"), ("mmseg", "regex", "regex")]
    if found["mmengine"][0] == "mmengine":  # not its fork
        needed.append(("mmengine", "pkg_resources", "'setuptools<82'"))
    for user, name, requirement in needed:
        if importlib.util.find_spec(name) is None:
            problems.append(f"{user} needs {name}: run pip install {requirement}.")
    return problems


def find_warnings() -> list[str]:
    """Look for what runs, but not as tested or not on the GPU.

    No CUDA context is created, so every process of a distributed run may ask.

    Returns:
        One sentence for each.
    """
    warnings = version_warnings()
    mmcv = find_versions().get("mmcv")
    if mmcv and _is_too_new(*mmcv) and _hosts_import():
        warnings.append(
            f"{' '.join(mmcv)} is newer than mmdet and mmseg allow (mmcv<2.2), "
            f"but they import: run the tests (make test) before you rely on it."
        )
    problem = cuda_problem()
    if problem is not None:
        warnings.append(problem)
    # AMD's builds answer to torch.cuda, too; their operators cannot be asked this way.
    if torch.version.cuda and torch.cuda.is_available() and import_error() is None:
        from mmcv.ops import get_compiling_cuda_version

        if get_compiling_cuda_version() == "not available":
            distribution, version = mmcv
            warnings.append(
                f"The operators of {distribution} {version} have no CUDA kernels, so "
                f"roi_align and others fail on the GPU: run {_replace(distribution)}."
            )
    return warnings


def _operator_problems(found: dict[str, tuple[str, str]]) -> list[str]:
    """Return at most one sentence: the fix of the first problem fixes the others."""
    distribution, version = found["mmcv"]
    if is_installed("mmcv") and is_installed("mmcv-lite"):
        return [
            f"mmcv and mmcv-lite overwrite each other's files: run pip uninstall -y "
            f"mmcv mmcv-lite, then {_INSTALL_LITE}."
        ]
    if _is_too_new(distribution, version) and not _hosts_import():
        return [
            f"{distribution} {version} is refused by mmdet and mmseg, which take only "
            f"mmcv<2.2: run pip uninstall -y {distribution}, then {_INSTALL_LITE}."
        ]
    error = import_error()
    if error is None:
        return []
    if isinstance(error, ModuleNotFoundError) and error.name == "mmcv._ext":
        fix = _INSTALL_LITE if distribution == "mmcv-lite" else _replace(distribution)
        return [f"{distribution} {version} has no operators: run {fix}."]
    if isinstance(error, ModuleNotFoundError) and error.name in ("mmcv", "mmcv.ops"):
        return [
            f"Files of {distribution} {version} are missing, as after another mmcv was "
            f"uninstalled: run pip uninstall -y {distribution}, then {_INSTALL_LITE}."
        ]
    return [
        f"{distribution} {version}'s operators do not load, most likely because they "
        f"were built for another torch than {torch.__version__} ({reason(error)}): "
        f"run {_replace(distribution)}."
    ]


def _is_too_new(distribution: str, version: str) -> bool:
    """Return whether the hosts' releases refuse this mmcv."""
    return not distribution.startswith("onedl") and release(version) >= (2, 2)


def _hosts_import() -> bool:
    """Return whether mmdet and mmseg import, as those patched for this mmcv do."""
    try:
        for name in ("mmdet", "mmseg"):
            importlib.import_module(name)
    except Exception:  # an AssertionError, or whatever a broken installation raises
        return False
    return True


def _replace(distribution: str) -> str:
    """Return the commands that give a distribution of mmcv operators that work."""
    if distribution == "onedl-mmcv":
        return _REBUILD_FORK
    if distribution == "mmcv-lite":
        return "pip install --force-reinstall torch torchvision"
    return f"pip uninstall -y {distribution}, then {_INSTALL_LITE}"
