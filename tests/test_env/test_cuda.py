"""A driver or GPU that does not fit torch has a line with the command that fixes it."""

import subprocess

import pytest
import torch

from ravlt.env import cuda

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
