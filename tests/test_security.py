"""What SECURITY.md promises of the code itself, of its scripts and its packages."""

import ast
import json
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
import torch
from packaging.requirements import Requirement

from helpers.hostile_checkpoints import Call
from helpers.tool_runs import DET, ENV, ROOT, Run

SOURCES = sorted([*ROOT.glob("ravlt/**/*.py"), *ROOT.glob("tools/**/*.py")])
SOURCES += sorted(ROOT.glob("projects/*/*.py"))
# Whatever its arguments.
FORBIDDEN = {"eval", "exec", "compile", "__import__", "os.system", "os.popen"}
FORBIDDEN |= {"pickle.load", "pickle.loads", "pickle.Unpickler", "marshal.loads"}
FORBIDDEN |= {"yaml.load", "yaml.full_load", "yaml.unsafe_load", "tempfile.mktemp"}
FORBIDDEN |= {"torch.hub.load", "torch.hub.load_state_dict_from_url", "shelve.open"}
FORBIDDEN |= {"joblib.load", "subprocess.getoutput", "subprocess.getstatusoutput"}
# A keyword that a call must have, or must not have.
REQUIRED = {"torch.load": ("weights_only", True)}
REFUSED = {"shell": True, "allow_pickle": True, "weights_only": False}


def faults(text: str) -> list[str]:
    """Calls in a source that could run what a file or a user says."""
    found, names = [], {}
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            names |= {a.asname: a.name for a in node.names if a.asname}
        elif isinstance(node, ast.ImportFrom):
            names |= {a.asname or a.name: f"{node.module}.{a.name}" for a in node.names}
    for node in ast.walk(ast.parse(text)):
        if not isinstance(node, ast.Call):
            continue
        head, dot, tail = ast.unparse(node.func).partition(".")
        function = names.get(head, head) + dot + tail
        keys = {k.arg: getattr(k.value, "value", None) for k in node.keywords}
        key, value = REQUIRED.get(function, (None, None))
        if (
            function in FORBIDDEN
            or (key and keys.get(key) is not value)
            or any(keys.get(k) is v for k, v in REFUSED.items())
        ):
            found.append(f"{node.lineno}: {ast.unparse(node)}")
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_no_source_runs_what_a_file_says(path):
    text = path.read_text()
    assert faults(text) == []
    assert "'/tmp" not in text and '"/tmp' not in text  # where everybody writes


@pytest.mark.parametrize(
    "text",
    [
        "eval(x)",
        "import torch\ntorch.load(f)",
        "from torch import load as read\nread(f, weights_only=False)",
        "import torch as t\nt.load(f, map_location='cpu')",
        "import numpy as np\nnp.load(f, allow_pickle=True)",
        "import subprocess as s\ns.run(x, shell=True)",
        "from os import system\nsystem('ls')",
        "import yaml\nyaml.load(f, Loader=yaml.Loader)",
        "from pickle import loads\nloads(x)",
        "import tempfile\ntempfile.mktemp()",
    ],
)
def test_the_rule_finds_faults(text):
    assert len(faults(text)) == 1
    assert faults("import torch\ntorch.load(f, weights_only=True)\nmodel.eval()") == []


# ------------------------------------------------------------------------ shell scripts

NASTY = ["a b", "x; touch owned", "$(touch owned)", "`touch owned`", "'\"", "*", "-c"]
FAKE = """#!{python}
import json, sys
json.dump(sys.argv[1:], open({out!r}, "w"))
"""


@pytest.fixture
def fake(tmp_path) -> Path:
    """Stands in for Python, and srun: writes down its arguments."""
    out = tmp_path / "arguments.json"
    for name in ("python", "srun"):
        path = tmp_path / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(FAKE.format(python=sys.executable, out=str(out)))
        path.chmod(0o755)
    return tmp_path


@pytest.mark.integration
@pytest.mark.parametrize(
    ("script", "count"),
    [("dist_train.sh", 2), ("dist_test.sh", 3), ("slurm_train.sh", 4)],
)
def test_scripts_pass_arguments_on_as_they_are(fake, script, count):
    line = ["bash", str(ROOT / "tools" / script), *NASTY[:count], *NASTY]
    env = ENV | {"PATH": f"{fake / 'bin'}:{ENV['PATH']}", "PYTHON": "python"}
    done = subprocess.run(line, cwd=fake, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    got = json.loads((fake / "arguments.json").read_text())
    assert got[-len(NASTY) :] == NASTY
    whole = {word.rpartition("=")[2] for word in got}
    assert whole >= set(NASTY[:count])
    assert not (fake / "owned").exists()


# ------------------------------------------------------------------------------ entries


def save_evil(path: Path, proof: Path) -> Path:
    content = {
        "state_dict": {"w": torch.ones(1)},
        "meta": Call(eval, f"open({str(proof)!r}, 'w')"),
    }
    torch.save(content, path)
    return path


@pytest.mark.integration
@pytest.mark.parametrize(
    "tool", ["model_converters/ravlt_to_mm.py", "model_converters/publish_model.py"]
)
def test_converters_refuse_hostile_files(tmp_path, tool):
    """Training and testing: see test_tools_errors.py."""
    proof = tmp_path / "proof"
    path = save_evil(tmp_path / "evil.pth", proof)
    line = [DET] if "ravlt_to_mm" in tool else []
    error = Run(tool, [*line, path, tmp_path / "out.pth"], tmp_path).error()
    assert error.startswith(f"error: Refused checkpoint '{path}': besides tensors it")
    assert not proof.exists() and not list(tmp_path.glob("out*"))


@pytest.mark.integration
def test_inferencers_refuse_hostile_files(tmp_path):
    """In a process of its own, since safe loading is the process's."""
    proof = tmp_path / "proof"
    path = save_evil(tmp_path / "evil.pth", proof)
    code = f"""
from ravlt.weights.checkpoint import use_safe_loading
use_safe_loading()
import ravlt
from mmdet.apis import DetInferencer
try:
    DetInferencer({str(DET)!r}, {str(path)!r}, device="cpu")
except ravlt.RAVLTError as error:
    print("refused", error)
"""
    line = [sys.executable, "-W", "ignore", "-c", code]
    done = subprocess.run(line, cwd=tmp_path, env=ENV, capture_output=True, text=True)
    assert "refused Refused checkpoint" in done.stdout, done.stdout + done.stderr
    assert not proof.exists()


# ----------------------------------------------------------------------------- packages


def pins(name: str) -> dict[str, str]:
    """Read constraints, as they apply to this Python."""
    lines = (ROOT / "constraints" / name).read_text().splitlines()
    found = [Requirement(line) for line in lines if line and line[0] not in "#-"]
    return {
        r.name: str(r.specifier).removeprefix("==")
        for r in found
        if r.marker is None or r.marker.evaluate()
    }


def test_what_is_installed_is_what_is_pinned():
    """Of the environment that `make env` built; a pin may be of the other stack."""
    # Whoever imports setuptools has its own copies on sys.path as well, behind ours.
    installed = {d.name.lower() for d in metadata.distributions()}
    ops = "torchvision.txt" if "mmcv-lite" in installed else "compiled.txt"
    pinned = pins("common.txt") | pins(ops)
    wanted = {n: v for n, v in pinned.items() if n in installed}
    assert len(wanted) > 15
    # A build of torch for one accelerator names it behind a plus.
    got = {name: metadata.version(name).partition("+")[0] for name in wanted}
    assert got == wanted


def test_every_package_that_we_name_is_pinned():
    from setuptools.config.setupcfg import read_configuration

    options = read_configuration(ROOT / "setup.cfg")["options"]
    extras = options["extras_require"]
    named = [
        *options["install_requires"],
        *(r for part in extras.values() for r in part),
    ]
    pinned = pins("common.txt") | pins("torchvision.txt") | pins("compiled.txt")
    unpinned = {Requirement(text).name for text in named} - pinned.keys()
    assert unpinned <= {"regex", "pre-commit"}
