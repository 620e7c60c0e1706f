"""The packages without which ``import ravlt`` fails.

Imports nothing but the standard library, so that it can explain why another import
does not work.
"""

import importlib
import sys
from importlib import metadata
from pathlib import Path

from .text import reason, release

_NEWEST_TORCHVISION = 29  # 0.29 serves torch 2.14 and everything after it


def require_imports() -> None:
    """Import mmengine, OpenCV, torchvision and timm.

    Raises:
        ImportError: If one is absent or does not load. The message is one sentence
            with the command that fixes it.
    """
    for name, explain in _EXPLANATIONS.items():
        try:
            importlib.import_module(name)
        except Exception as error:  # whatever a broken binary raises
            raise ImportError(explain(error)) from None


def _explain_mmengine(error: Exception) -> str:
    checkout = Path(__file__).parents[2]
    for venv in sorted(checkout.glob(".venv*")):
        if Path(sys.prefix) == venv:
            return "ravlt needs mmengine, and make env did not finish: run it again."
        if (venv / ".ready").exists():
            return f"ravlt needs mmengine: run source {venv}/bin/activate."
    install = "pip install 'ravlt[openmmlab]'"
    if (checkout / "setup.cfg").exists():
        install = f"make env in {checkout}, or there pip install -e '.[openmmlab]'"
    return f"ravlt needs mmengine: run {install}, or [onedl] for the maintained forks."


def _explain_opencv(error: Exception) -> str:
    return (
        f"OpenCV does not load ({reason(error)}): run pip uninstall -y opencv-python, "
        f"then pip install --force-reinstall --no-deps opencv-python-headless."
    )


def _explain_torchvision(error: Exception) -> str:
    torch = metadata.version("torch")
    major, minor = release(torch)
    fitting = min(15 + minor, _NEWEST_TORCHVISION) if major == 2 else None
    version = f"torchvision==0.{fitting}.*" if fitting else "torchvision"
    return (
        f"torchvision does not load beside torch {torch} ({reason(error)}): run pip "
        f"install --force-reinstall --no-deps '{version}', from the same index as "
        f"torch."
    )


def _explain_timm(error: Exception) -> str:
    return f"timm does not load ({reason(error)}): run pip install 'timm>=1.0'."


_EXPLANATIONS = {
    "mmengine": _explain_mmengine,
    "cv2": _explain_opencv,
    "torchvision": _explain_torchvision,
    "timm": _explain_timm,
}
