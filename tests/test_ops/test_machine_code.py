"""Every Triton kernel compiled to machine code, for GPUs that are not there."""

import functools
import json
import os
import subprocess
import sys

import pytest

from helpers.tool_runs import ROOT

pytestmark = pytest.mark.integration

# A100; H100 and H200; B200; GeForce RTX 50. Those of capability 8.6 to 12.0 that are
# not in data centres share 99 KiB among the threads of a multiprocessor.
capabilities = pytest.mark.parametrize("capability", [80, 90, 100, 120])


@functools.cache
def usage(capability: int) -> list[dict]:
    """Compile in a process without Triton's interpreter."""
    env = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"}
    env.pop("TRITON_INTERPRET", None)
    line = [sys.executable, "-W", "ignore", "-m", "helpers.machine_code"]
    done = subprocess.run(
        [*line, str(capability)], env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(text) for text in done.stdout.splitlines()]


@capabilities
def test_kernels_fit_the_gpu(capability):
    kernels = usage(capability)
    # Three dtypes and two head dimensions; the B200 computes float32 in plain PyTorch.
    without = 2 * 6 if capability == 100 else 0
    assert len(kernels) == (6 * 13 - without) * (2 if capability == 90 else 1)
    for kernel in kernels:
        assert kernel["shared"] <= 99 * 1024, kernel
        # A few scalars. Registers that spill in the loop take hundreds of bytes.
        assert kernel["stack"] <= 32, kernel


@capabilities
def test_loads_are_wide(capability):
    """Threads load 16 bytes at once: most of a kernel's loads, if it loads tokens."""
    narrow = {
        k["kernel"] for k in usage(capability) if k["wide_loads"] < k["loads"] / 2
    }
    # They load single numbers: of splits, and for the reduction of angles.
    assert narrow == {"merge_states", "rotary_table"}


def test_products_run_on_tensor_cores():
    slow = {
        (k["kernel"], k["dtype"], k["dim"])
        for k in usage(90)
        if k["multiplies"] and not k["tensor_cores"]
    }
    products = ("key_value_sums", "outputs", "state_gradients")
    products += ("key_value_gradients", "query_gradients")
    assert slow == {(kernel, "fp32", 96) for kernel in products}
