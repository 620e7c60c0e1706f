"""A report of the environment, and a line for each known way it breaks.

Run ``python -m ravlt.env``.
"""

import contextlib
import importlib
import importlib.util
import platform
from importlib import metadata

import torch

_HOSTS = ("mmengine", "mmcv", "mmdet", "mmseg")
_DISTRIBUTIONS = {
    "mmengine": ("mmengine", "onedl-mmengine", "mmengine-lite"),
    "mmcv": ("mmcv", "onedl-mmcv", "mmcv-lite"),
    "mmdet": ("mmdet", "onedl-mmdetection"),
    "mmseg": ("mmsegmentation", "onedl-mmsegmentation"),
}
_REBUILD = (
    "MMCV_WITH_OPS=1 pip install --force-reinstall --no-deps --no-cache-dir "
    "--no-build-isolation --no-binary :all:"
)


def find_versions() -> dict[str, tuple[str, str]]:
    """Finds the installed hosts.

    Returns:
        For each import name present, its distribution and version.
    """
    found = {}
    for module, names in _DISTRIBUTIONS.items():
        for name in names:
            with contextlib.suppress(metadata.PackageNotFoundError):
                found.setdefault(module, (name, metadata.version(name)))
    return found


def ops_error() -> Exception | None:
    """Tries mmcv's compiled ops with a real call; gives the error, or None."""
    try:
        ops = importlib.import_module("mmcv.ops")
        boxes = torch.tensor([[0.0, 0.0, 4.0, 4.0], [0.0, 0.0, 4.0, 4.1]])
        ops.nms(boxes, torch.tensor([0.9, 0.8]), 0.5)
    except Exception as error:  # whatever a broken binary raises
        return error
    return None


def find_problems() -> list[str]:
    """Looks for the known mismatches between the packages.

    Returns:
        One sentence for each, which says how to mend it.
    """
    found = find_versions()
    absent = [name for name in _HOSTS if name not in found]
    if absent:
        return [
            f"{', '.join(absent)} not installed: run pip install 'ravlt[openmmlab]' or "
            f"make env."
        ]
    problems = []
    distribution, version = found["mmcv"]
    forks = found["mmdet"][0].startswith("onedl")
    if not forks and tuple(map(int, version.split(".")[:2])) >= (2, 2):
        problems.append(
            f"mmcv {version} is refused by mmdet and mmseg, which take only mmcv<2.2: "
            f"run {_REBUILD} 'mmcv==2.1.0'."
        )
    error = ops_error()
    if error is not None:
        problems.append(_explain_ops(error, distribution, version))
    for name in ("ftfy", "regex"):
        if importlib.util.find_spec(name) is None:
            problems.append(f"mmseg needs {name}: run pip install {name}.")
    return problems


def _explain_ops(error: Exception, distribution: str, version: str) -> str:
    rebuild = f"run {_REBUILD} {distribution}=={version}."
    if importlib.util.find_spec("mmcv._ext") is None:
        if distribution == "mmcv-lite":
            rebuild = f"pip uninstall mmcv-lite, then {_REBUILD} mmcv==2.1.0."
        return f"{distribution} {version} has no compiled ops: {rebuild}"
    reason = (str(error).strip() or type(error).__name__).splitlines()[-1]
    return (
        f"{distribution} {version}'s ops do not load, most likely because they were "
        f"built for another torch than {torch.__version__} ({reason}): {rebuild}"
    )


def report() -> str:
    """Describes the environment, one fact a line, problems last."""
    from ravlt.version import __version__

    lines = [
        f"ravlt      {__version__}",
        f"python     {platform.python_version()} on {platform.platform()}",
    ]
    for name in ("torch", "torchvision", "timm", "numpy", "cv2"):
        try:
            version = importlib.import_module(name).__version__
        except ImportError as error:
            version = f"does not import: {error}"
        lines.append(f"{name:<10} {version}")
    for module, (distribution, version) in find_versions().items():
        lines.append(f"{module:<10} {version} ({distribution})")
    lines.append(f"mmcv ops   {'do not load' if ops_error() else 'load'}")
    lines.append(f"threads    {torch.get_num_threads()}")
    gpus = [
        torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())
    ] or ["none"]
    lines.append(f"GPU        {', '.join(gpus)}")
    lines += [f"problem    {problem}" for problem in find_problems()]
    return "\n".join(lines)


if __name__ == "__main__":
    print(report())
