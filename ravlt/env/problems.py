"""The known mismatches between the packages, and the line that fixes each."""

import importlib.util

import torch

from .cuda import cuda_problem
from .operators import import_error
from .versions import find_versions, is_installed, release, version_warnings

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
    problems = []
    distribution, version = found["mmcv"]
    forks = found["mmdet"][0].startswith("onedl")
    if is_installed("mmcv") and is_installed("mmcv-lite"):
        problems.append(
            f"mmcv and mmcv-lite overwrite each other's files: run pip uninstall mmcv "
            f"mmcv-lite, then {_INSTALL_LITE}."
        )
    elif not forks and release(version) >= (2, 2):
        problems.append(
            f"{distribution} {version} is refused by mmdet and mmseg, which take only "
            f"mmcv<2.2: run pip uninstall {distribution}, then {_INSTALL_LITE}."
        )
    error = import_error()
    if error is not None:
        problems.append(_explain_operators(error, distribution, version))
    for name in ("ftfy", "regex"):
        if importlib.util.find_spec(name) is None:
            problems.append(f"mmseg needs {name}: run pip install {name}.")
    return problems


def find_warnings() -> list[str]:
    """Look for what runs, but not as tested or not on the GPU.

    No CUDA context is created, so every process of a distributed run may ask.

    Returns:
        One sentence for each.
    """
    warnings = version_warnings()
    problem = cuda_problem()
    if problem is not None:
        warnings.append(problem)
    # AMD's builds answer to torch.cuda, too; their operators cannot be asked this way.
    if torch.version.cuda and torch.cuda.is_available() and import_error() is None:
        from mmcv.ops import get_compiling_cuda_version

        if get_compiling_cuda_version() == "not available":
            distribution, version = find_versions()["mmcv"]
            warnings.append(
                f"The operators of {distribution} {version} have no CUDA kernels, so "
                f"roi_align and others fail on the GPU: run {_replace(distribution)}."
            )
    return warnings


def _explain_operators(error: Exception, distribution: str, version: str) -> str:
    if importlib.util.find_spec("mmcv._ext") is not None:
        reason = (str(error).strip() or type(error).__name__).splitlines()[-1]
        return (
            f"{distribution} {version}'s operators do not load, most likely because "
            f"they were built for another torch than {torch.__version__} ({reason}): "
            f"run {_replace(distribution)}."
        )
    if distribution == "mmcv-lite":
        return f"mmcv-lite {version} has no operators: run {_INSTALL_LITE}."
    return f"{distribution} {version} has no operators: run {_replace(distribution)}."


def _replace(distribution: str) -> str:
    """Return the commands that give a distribution of mmcv operators that work."""
    if distribution == "onedl-mmcv":
        return _REBUILD_FORK
    if distribution == "mmcv-lite":
        return "pip install --force-reinstall torch torchvision"
    return f"pip uninstall {distribution}, then {_INSTALL_LITE}"
