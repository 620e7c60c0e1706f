"""What ``import ravlt`` does, and what it leaves alone."""

import subprocess
import sys

import yaml
from running import ENV, ROOT

REGISTERED = """
import sys
import ravlt
import timm
from mmengine.registry import HOOKS, MODELS, OPTIM_WRAPPERS, TRANSFORMS
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS
assert MODELS.get("RAVLT") is ravlt.RAVLT
names = ["SafeCheckpointHook", "StopOnNonFiniteHook", "CurveHook", "ClipGradHook"]
names += ["DeployHook", "EffectiveRankHook", "LossSpikeHook"]
assert all(HOOKS.get(name) for name in names)
assert OPTIM_WRAPPERS.get("FiniteOptimWrapper")
assert TRANSFORMS.get("VerifyImages")
assert OPTIM_WRAPPER_CONSTRUCTORS.get("LayerDecayOptimWrapperConstructor")
assert timm.is_model("ravlt_t")
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


def test_the_wheel_ships_configs_and_tools(wheel_site):
    home = wheel_site / "ravlt/.mim"
    for folder in ("configs", "tools"):
        here, there = (
            {
                path.relative_to(root).as_posix(): path.read_bytes()
                for path in (root / folder).rglob("*")
                if path.is_file() and "__pycache__" not in path.parts
            }
            for root in (ROOT, home)
        )
        assert here == there
    index = yaml.safe_load((home / "model-index.yml").read_text())
    assert all((home / path).is_file() for path in index["Import"])


def test_the_wheel_works_in_a_foreign_directory(wheel_site, tmp_path):
    """Its own tool reads its own config, which inherits the host's and another."""
    home = wheel_site / "ravlt/.mim"
    config = home / "configs/mask_rcnn/mask-rcnn_ravlt-s-linear_fpn_1x_coco.py"
    code = f"""
import runpy, sys
import ravlt
assert ravlt.__file__.startswith({str(wheel_site)!r}), ravlt.__file__
sys.argv = ["get_flops.py", {str(config)!r}, "--shape", "64"]
runpy.run_path({str(home / "tools/analysis_tools/get_flops.py")!r}, run_name="__main__")
"""
    env = ENV | {"PYTHONPATH": str(wheel_site)}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=env,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "backbone.layers.3" in done.stdout
