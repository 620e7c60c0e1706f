"""What a config would do is listed, and nothing of it is done."""

import json
from pathlib import Path

import pytest
from mmengine.config import Config
from mmengine.registry import Registry

from helpers.tool_runs import ROOT, Run
from ravlt.analysis.config_risks import find_risks
from ravlt.errors import RAVLTError

BASE = "model = dict()\n__import__('os').mkdir({proof!r})\n"
LEAF = """\
_base_ = ["base.py", "mmdet::_base_/default_runtime.py", "gone.py"]
custom_imports = dict(imports=["evil.module", "ravlt"])
from subprocess import run as start
import os.path as path
numbers = [len(str(i)) for i in range(3)]
exec("x = 1")
open("x", "w")
hidden = ().__class__
hook = dict(type="os.system", command="ls")
hooks = [{{"type": "mmdet.Resize"}}, {{"type": "shutil.rmtree", "path": "x"}}]
numbers.append(4)
name = "{{{{ fileBasename }}}}"
root = "{{{{ $HOME:/x }}}}"
model = dict()
"""
EXPECTED = {
    ("leaf.py", 1, "inherits", "base.py"),
    ("leaf.py", 1, "inherits", "mmdet::_base_/default_runtime.py"),
    ("leaf.py", 1, "inherits", "gone.py"),
    ("leaf.py", 1, "unread", "gone.py"),
    ("leaf.py", 2, "imports", "evil.module"),
    ("leaf.py", 2, "imports", "ravlt"),
    ("leaf.py", 3, "imports", "subprocess"),
    ("leaf.py", 4, "imports", "os.path"),
    ("leaf.py", 6, "calls", "exec('x = 1')"),
    ("leaf.py", 7, "calls", "open('x', 'w')"),
    ("leaf.py", 8, "calls", "().__class__"),
    ("leaf.py", 9, "names", "os.system"),
    ("leaf.py", 10, "names", "shutil.rmtree"),
    ("leaf.py", 12, "reads", "{{ fileBasename }}"),
    ("leaf.py", 13, "reads", "{{ $HOME:/x }}"),
    ("base.py", 2, "calls", "__import__('os').mkdir({proof!r})"),
    ("base.py", 2, "calls", "__import__('os')"),
}


@pytest.fixture
def proof(tmp_path) -> Path:
    """What the base would make."""
    proof = tmp_path / "proof"
    (tmp_path / "base.py").write_text(BASE.format(proof=str(proof)))
    (tmp_path / "leaf.py").write_text(LEAF.format())
    return proof


def test_everything_is_found_and_nothing_runs(tmp_path, proof):
    risks = find_risks(str(tmp_path / "leaf.py"))
    found = {(Path(r.path).name, r.line, r.kind, r.what) for r in risks}
    assert found == {
        (name, line, kind, what.format(proof=str(proof)) if name == "base.py" else what)
        for name, line, kind, what in EXPECTED
    }
    assert not proof.exists()
    Config.fromfile(tmp_path / "base.py")  # it was dangerous
    assert proof.exists()


def test_a_type_may_name_any_function(tmp_path):
    """As the listing says: mmengine imports it, and calls it with the other keys."""
    target = str(tmp_path / "proof")
    Registry("any").build(dict(type="os.mkdir", path=target))
    assert Path(target).is_dir()


def test_bases_in_pure_python(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a/leaf.py").write_text(
        "from mmengine.config import read_base\n"
        "with read_base():\n"
        "    from .._base import *\n"
        "    from mmdet.configs._base_.default_runtime import *\n"
    )
    (tmp_path / "_base.py").write_text("eval('1')")
    risks = find_risks(str(tmp_path / "a/leaf.py"))
    assert {(r.kind, r.what) for r in risks if r.line} >= {
        ("inherits", ".._base"),
        ("inherits", "mmdet.configs._base_.default_runtime"),
        ("calls", "eval('1')"),
    }


@pytest.mark.parametrize("text", ["x = (", "\0", "_base_ = 'a.yml'"])
def test_what_cannot_be_read_is_said(tmp_path, text):
    (tmp_path / "a.py").write_text(text)
    (tmp_path / "a.yml").write_text("x: !!python/object/apply:os.getcwd []")
    assert "unread" in {risk.kind for risk in find_risks(str(tmp_path / "a.py"))}


def test_files_that_are_none(tmp_path):
    (tmp_path / "a.yml").write_text("")
    with pytest.raises(RAVLTError, match="runs tags in YAML; read it in an editor"):
        find_risks(str(tmp_path / "a.yml"))
    for name in (str(tmp_path / "none.py"), "mmdet::none.py", "nothing::a.py"):
        with pytest.raises(RAVLTError, match="does not exist; correct the path"):
            find_risks(name)


@pytest.mark.parametrize("path", sorted(ROOT.glob("configs/*/*.py"))[::5], ids=str)
def test_our_configs_call_nothing(path):
    kinds = {risk.kind for risk in find_risks(str(path)) if "mm" not in risk.path}
    assert kinds <= {"inherits", "imports"}


@pytest.mark.integration
def test_the_tool(tmp_path, proof):
    run = Run("misc/print_config.py", ["leaf.py", "--imports"], tmp_path).succeeded()
    assert "leaf.py:9: names os.system\n" in run.out
    assert "12 to look at; a config is code, and nothing of it was run.\n" in run.out
    assert not proof.exists()
    (tmp_path / "good.py").write_text("_base_ = ['other.py']\nmodel = dict(a=1)\n")
    (tmp_path / "other.py").write_text("model = dict(b=2)\n")
    line = ["good.py", "--cfg-options", "model.c=3"]
    run = Run("misc/print_config.py", line, tmp_path).succeeded()
    cfg = Config.fromstring(run.out[run.out.index("model") :], ".py")
    assert json.dumps(cfg.model, sort_keys=True) == '{"a": 1, "b": 2, "c": 3}'
