"""The GPU and its driver beside the CUDA version that torch was built for."""

import re
import shutil
import subprocess

import torch

from .text import release

# An index of PyTorch's wheels by the major version of CUDA that a driver runs.
_WHEELS = {11: "cu118", 12: "cu126", 13: "cu130"}
_OLD_GPUS = "cu126"  # the last builds with kernels for compute capability below 7.5


def find_driver() -> tuple[str, str] | None:
    """Ask the NVIDIA driver for its version.

    Returns:
        The driver's version and the newest CUDA that it runs; None without a driver
        or a GPU.
    """
    answer = _ask_driver()
    driver = re.search(r"Driver Version:\s*([\d.]+)", answer)
    cuda = re.search(r"CUDA Version:\s*([\d.]+)", answer)
    return (driver[1], cuda[1]) if driver and cuda else None


def cuda_problem() -> str | None:
    """Explain why torch cannot use a GPU that the driver sees.

    Returns:
        One sentence with the command that fixes it, or None.
    """
    if torch.cuda.is_available():
        return _architecture_problem()
    found = find_driver()
    if found is None:
        return None
    driver, supported = found
    major = release(supported)[0]
    if torch.version.cuda is None:
        problem, fixes = "was built without CUDA", []
    elif release(torch.version.cuda)[0] > major:
        problem = (
            f"was built for CUDA {torch.version.cuda}, but driver {driver} runs CUDA "
            f"up to {supported}"
        )
        fixes = ["update the driver"]
    else:
        return None
    if major >= min(_WHEELS):
        fixes.append(_install(_WHEELS.get(major, _WHEELS[max(_WHEELS)])))
    return f"torch {torch.__version__} {problem}: {', or '.join(fixes)}."


def _architecture_problem() -> str | None:
    """Compare the GPUs' compute capability with the kernels in torch."""
    kernels = torch.cuda.get_arch_list()
    for line in _ask_driver("--query-gpu=compute_cap", "--format=csv,noheader").split():
        if re.fullmatch(r"\d+\.\d+", line) and not _has_kernels(release(line), kernels):
            return (
                f"torch {torch.__version__} has no kernels for a GPU of compute "
                f"capability {line}: {_install(_OLD_GPUS)}."
            )
    return None


def _has_kernels(capability: tuple[int, int], kernels: list[str]) -> bool:
    """Return whether machine code (sm) or PTX (compute) of torch runs on a GPU.

    Machine code runs within its major version, PTX on every newer GPU.
    """
    for kernel in kernels:
        kind, number = re.fullmatch(r"(sm|compute)_(\d+)[a-z]*", kernel).groups()
        built_for = divmod(int(number), 10)
        same_major = built_for[0] == capability[0]
        if built_for <= capability and (same_major or kind == "compute"):
            return True
    return False


def _install(index: str) -> str:
    return (
        f"run pip install --force-reinstall torch torchvision --index-url "
        f"https://download.pytorch.org/whl/{index}"
    )


def _ask_driver(*arguments: str) -> str:
    """Return what nvidia-smi prints; nothing where it is absent or does not answer."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return ""
    try:
        done = subprocess.run(
            [program, *arguments], capture_output=True, text=True, timeout=20
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout
