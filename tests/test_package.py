"""What ``import ravlt`` does, and what it leaves alone."""

import subprocess
import sys

REGISTERED = """
import sys
import ravlt
from mmengine.registry import HOOKS, MODELS, TRANSFORMS
assert MODELS.get("RAVLT") is ravlt.RAVLT
names = ["SafeCheckpointHook", "StopOnNonFiniteHook", "CurveHook"]
assert all(HOOKS.get(name) for name in names)
assert TRANSFORMS.get("VerifyImages")
hosts = {"mmcv", "mmdet", "mmseg"} & set(sys.modules)
assert not hosts, hosts
"""
WITHOUT_MMENGINE = """
import sys
sys.modules["mmengine"] = None
import ravlt
"""


def python(code: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)


def test_import_registers_everything_and_no_host():
    done = python(REGISTERED)
    assert done.returncode == 0, done.stderr


def test_without_mmengine_the_error_says_what_to_install():
    done = python(WITHOUT_MMENGINE)
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert "pip install 'ravlt[openmmlab]' or pip install 'ravlt[onedl]'" in last
