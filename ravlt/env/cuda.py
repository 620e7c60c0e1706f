"""The GPU driver beside the CUDA version that torch was built for."""

import re
import shutil
import subprocess

import torch

from .versions import release

# The newest CUDA for which PyTorch publishes wheels, by the major version of a driver.
_WHEELS = {11: "cu118", 12: "cu126", 13: "cu130"}


def find_driver() -> tuple[str, str] | None:
    """Ask the NVIDIA driver for its version.

    Returns:
        The driver's version and the newest CUDA that it runs; None without a driver
        or a GPU.
    """
    if shutil.which("nvidia-smi") is None:
        return None
    answer = subprocess.run(["nvidia-smi"], capture_output=True, text=True).stdout
    driver = re.search(r"Driver Version:\s*([\d.]+)", answer)
    cuda = re.search(r"CUDA Version:\s*([\d.]+)", answer)
    return (driver[1], cuda[1]) if driver and cuda else None


def cuda_problem() -> str | None:
    """Explain why torch does not see a GPU that the driver sees.

    Returns:
        One sentence with the command that fixes it, or None.
    """
    if torch.cuda.is_available():
        return None
    found = find_driver()
    if found is None:
        return None
    driver, supported = found
    major = release(supported)[0]
    index = _WHEELS.get(major, "cu130")
    install = (
        f"run pip install --force-reinstall torch torchvision --index-url "
        f"https://download.pytorch.org/whl/{index}"
    )
    if torch.version.cuda is None:
        return f"torch {torch.__version__} was built without CUDA: {install}."
    if release(torch.version.cuda)[0] > major:
        return (
            f"torch {torch.__version__} was built for CUDA {torch.version.cuda}, but "
            f"driver {driver} runs CUDA up to {supported}: update the driver, or "
            f"{install}."
        )
    return None
