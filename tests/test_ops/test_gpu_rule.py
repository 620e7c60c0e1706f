"""When operators take their kernels: the rule, with a GPU that is not there."""

import os
import subprocess
import sys
import warnings
from types import SimpleNamespace

import pytest
import torch

from helpers.backbones import images
from helpers.tool_runs import ROOT
from ravlt.ops import gpu, plain_forms
from ravlt.ops.gpu import runs_as_kernel
from ravlt.ops.launch import MAX_SPLITS, divide_tokens


@pytest.fixture(autouse=True)
def _kernels(kernels, monkeypatch) -> None:
    monkeypatch.setattr(gpu, "_DEVICE_TYPE", "cpu")
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Old GPU")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))


def reasons(x) -> list[str]:
    """Ask twice, and return the warnings."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert not runs_as_kernel(x)
        assert not runs_as_kernel(x)
    return [str(warning.message) for warning in caught]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_supported(dtype):
    x = images(2).to(dtype)
    assert runs_as_kernel(x)
    assert runs_as_kernel(x, torch.nn.Parameter(images(2)))


def test_other_dtypes_devices_and_requests():
    x = images(2)
    assert not runs_as_kernel(x.double())
    assert not runs_as_kernel(x, x.double())
    assert not runs_as_kernel(x, x.to("meta"))
    assert not runs_as_kernel(x.to("meta"))
    with plain_forms():
        assert not runs_as_kernel(x)


def test_old_gpus(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    (reason,) = reasons(images(2))
    assert "Old GPU" in reason and "8.0" in reason


def test_amd(monkeypatch):
    monkeypatch.setattr(torch.version, "hip", "6.4")
    (reason,) = reasons(images(2))
    assert "AMD" in reason


def test_without_triton(monkeypatch):
    monkeypatch.setattr(gpu, "HAS_TRITON", False)
    (reason,) = reasons(images(2))
    assert "pip install triton" in reason


@pytest.mark.integration
def test_a_triton_that_does_not_import(tmp_path):
    (tmp_path / "triton.py").write_text("raise ImportError('no such library')\n")
    paths = os.pathsep.join([str(tmp_path), str(ROOT)])
    code = (
        "import torch, ravlt; print(len(ravlt.RAVLT('test')(torch.rand(2, 3, 64, 64))))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": paths},
        capture_output=True,
        text=True,
    )
    assert done.stdout == "4\n", done.stderr


def test_without_a_compiler(monkeypatch):
    """Triton compiles its access to the driver when first used."""

    def fail() -> None:
        raise RuntimeError("Failed to find C compiler.\nSpecify it by CC.")

    monkeypatch.setattr(gpu, "_prepare_triton", fail)
    (reason,) = reasons(images(2))
    assert "(Failed to find C compiler.)" in reason and "install gcc" in reason


def gpu_of_132_multiprocessors(monkeypatch) -> None:
    properties = SimpleNamespace(multi_processor_count=132)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: properties)


@pytest.mark.parametrize("heads", [1, 7, 64, 5000])
@pytest.mark.parametrize("tokens", [0, 1, 255, 256, 257, 4200, 256_000])
def test_splits_cover_the_tokens_and_none_is_empty(monkeypatch, heads, tokens):
    gpu_of_132_multiprocessors(monkeypatch)
    splits, size = divide_tokens(heads, tokens, torch.device("cpu"))
    assert 1 <= splits <= MAX_SPLITS
    assert splits * size >= tokens
    assert (splits - 1) * size < max(tokens, 1)


def test_one_large_head_fills_the_gpu(monkeypatch):
    gpu_of_132_multiprocessors(monkeypatch)
    splits, _ = divide_tokens(1, 256_000, torch.device("cpu"))
    assert splits > 100
