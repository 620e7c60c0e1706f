"""The text of ``python -m ravlt.env``."""

import importlib
import platform

import torch

from ravlt.ops.gpu import why_no_kernels
from ravlt.version import __version__

from .cuda import find_driver
from .operators import probe_operators
from .problems import find_problems, find_warnings
from .versions import find_versions


def report() -> str:
    """Describe the environment.

    Returns:
        One fact a line; warnings and problems last.
    """
    lines = [
        _line("ravlt", __version__),
        _line("python", f"{platform.python_version()} on {platform.platform()}"),
    ]
    for name in ("torch", "torchvision", "timm", "numpy", "cv2"):
        try:
            version = importlib.import_module(name).__version__
        except ImportError as error:
            version = f"does not import: {error}"
        lines.append(_line(name, version))
    for module, (distribution, version) in find_versions().items():
        lines.append(_line(module, f"{version} ({distribution})"))
    lines.append(_line("threads", str(torch.get_num_threads())))
    gpus = [f"cuda:{i}" for i in range(torch.cuda.device_count())]
    for gpu in gpus:
        lines.append(_line(gpu, torch.cuda.get_device_name(gpu)))
    if not gpus:
        lines.append(_line("GPU", "none"))
    driver = find_driver()
    if driver is not None:
        lines.append(_line("driver", f"{driver[0]}, runs CUDA up to {driver[1]}"))
        lines.append(_line("CUDA", f"{torch.version.cuda} in torch"))
    if gpus:
        reason = why_no_kernels(torch.device(gpus[0]))
        lines.append(_line("kernels", f"none: {reason}" if reason else "by Triton"))
    # One GPU stands for all of them: they have the same driver and the same packages.
    for device in ["cpu", *gpus[:1]]:
        lines += _operator_lines(device)
    lines += [_line("warning", text) for text in find_warnings()]
    lines += [_line("problem", text) for text in find_problems()]
    return "\n".join(lines)


def _operator_lines(device: str) -> list[str]:
    errors = probe_operators(device)
    running = [name for name, error in errors.items() if error is None]
    lines = [_line("operators", f"on {device}: {', '.join(running) or 'none'}")]
    for name, error in errors.items():
        if error is not None:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            lines.append(_line("", f"not on {device}: {name} ({reason[:100]})"))
    return lines


def _line(name: str, text: str) -> str:
    return f"{name:<12}{text}"
