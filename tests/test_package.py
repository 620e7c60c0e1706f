"""What ``import ravlt`` does, what it leaves alone, and what the wheel holds."""

import ast
import json
import subprocess
import sys

import pytest
import yaml

import ravlt
from helpers.tool_runs import ENV, ROOT

pytestmark = pytest.mark.integration

# All that a config can name, by the registry of mmengine's root that knows it.
REGISTERED = {
    "HOOKS": [
        "CheckpointFitHook",
        "CurveHook",
        "DeployHook",
        "EffectiveRankHook",
        "LossSpikeHook",
        "MissedEvaluationHook",
        "SafeCheckpointHook",
        "SameStartHook",
        "StopOnNonFiniteHook",
    ],
    "LOOPS": ["SafeEpochBasedTrainLoop", "SafeIterBasedTrainLoop"],
    "MODELS": ["RAVLT"],
    "OPTIM_WRAPPERS": ["FiniteAmpOptimWrapper", "FiniteOptimWrapper"],
    "OPTIM_WRAPPER_CONSTRUCTORS": ["LayerDecayOptimWrapperConstructor"],
    "TRANSFORMS": ["VerifyImages"],
}
IMPORTED = """
import json
import sys
import ravlt
import timm
from mmengine import registry
assert registry.MODELS.get("RAVLT") is ravlt.RAVLT
registries = vars(registry).items()
names = {
    n: sorted(k for k, v in r.module_dict.items() if v.__module__.startswith("ravlt"))
    for n, r in registries
    if isinstance(r, registry.Registry)
}
names = {n: found for n, found in names.items() if found}
print(json.dumps([names, timm.list_models("ravlt*"), sorted(sys.modules)]))
"""
WITHOUT_MMENGINE = """
import sys
sys.modules["mmengine"] = None
import ravlt
"""


def python(code: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)


@pytest.fixture(scope="module")
def imported() -> tuple[dict, list, list]:
    """Registered names, timm's names and all modules after ``import ravlt`` alone."""
    done = python(IMPORTED)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_import_registers_all_that_configs_name(imported):
    names, models, _ = imported
    assert names == REGISTERED
    assert models == [
        f"ravlt_{size}{kind}" for size in "blst" for kind in ("", "_linear")
    ]


@pytest.mark.parametrize(
    "package", ["mmcv", "mmdet", "mmseg", "ravlt.analysis", "ravlt.weights"]
)
def test_import_leaves_out(imported, package):
    """The hosts, analysis, and the code that reads and downloads weights."""
    _, _, modules = imported
    assert "ravlt.models" in modules
    assert not [m for m in modules if f"{m}.".startswith(f"{package}.")]


def test_without_mmengine_the_error_says_what_to_install():
    done = python(WITHOUT_MMENGINE)
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("ImportError: ravlt needs mmengine")


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


def test_the_wheel_holds_the_library_alone(wheel_site):
    names = {path.name for path in wheel_site.iterdir()}
    assert names == {"ravlt", f"ravlt-{ravlt.__version__}.dist-info"}
    shipped = {path.name for path in (wheel_site / "ravlt/.mim").iterdir()}
    assert shipped == {"configs", "tools", "model-index.yml"}


def test_nothing_shipped_imports_a_project():
    projects = {path.stem for path in ROOT.glob("projects/*/*.py")} | {"projects"}
    assert "comparison" in projects
    for path in [*ROOT.glob("ravlt/**/*.py"), *ROOT.glob("tools/**/*.py")]:
        imported = set()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                imported |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                imported.add(node.module.partition(".")[0])
        assert not imported & projects, path


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


def test_import_paths_of_version_0_1():
    """Pages of that version told scripts to import these names from there."""
    from ravlt.checkpoint import load_pretrained, use_safe_loading
    from ravlt.models import Attention, GatedAttention
    from ravlt.models.attention import Attention as SameAttention

    assert use_safe_loading is ravlt.weights.checkpoint.use_safe_loading
    assert load_pretrained is ravlt.weights.checkpoint.load_pretrained
    assert Attention is SameAttention is GatedAttention
    with pytest.raises(ImportError, match="cannot import name 'Nothing'"):
        from ravlt.models.attention import Nothing  # noqa: F401
