"""A swap written down as a config gives what the swap gives."""

import ast

import pytest
from mmengine.config import Config

from helpers.swap_configs import (
    DEEPLAB,
    MASK2FORMER,
    OCRNET,
    QDTRACK,
    RETINANET,
    SEGFORMER,
    SOFT_TEACHER,
    load,
)
from helpers.tool_runs import Run
from ravlt.swap import leaf_config, plan_swap, swap_backbone

NAMES = [RETINANET, MASK2FORMER, SOFT_TEACHER, QDTRACK, OCRNET, DEEPLAB, SEGFORMER]


def plain(node):
    """Without what mmengine adds to configs inherited from a package."""
    if isinstance(node, dict):
        return {k: plain(v) for k, v in node.items() if k != "_scope_"}
    if isinstance(node, list | tuple):
        return type(node)(plain(v) for v in node)
    return node


@pytest.mark.integration
@pytest.mark.parametrize("name", NAMES, ids=lambda name: name.partition("/")[0])
def test_reading_it_gives_the_swapped_config(tmp_path, name):
    swap = plan_swap(load(name), "s", "rala", "S.pth")
    wanted = swap.apply(load(name))
    text = leaf_config(name, load(name), wanted, swap)
    path = tmp_path / "mine.py"
    path.write_text(text)
    assert plain(Config.fromfile(path).to_dict()) == plain(wanted.to_dict())
    for change in swap.changes:
        assert f"# {change.why}" in text or f"; {change.why}" in text
    if name != OCRNET:  # which has to write a list of heads out
        assert len(text.splitlines()) < 65
    assert max(map(len, text.splitlines())) <= 88 or "_base_" in text


def test_strings_that_need_care():
    path = ("model", "backbone")
    original = Config(dict(model=dict(backbone=dict(type="Old"))))
    value = dict(type='A "quoted" \\ name', one=(1,), odd={"a.b": [1, None, "it's"]})
    from ravlt.swap.changes import Change, Swap

    swap = Swap((Change(path, value, "because"),), ())
    text = leaf_config("base.py", original, swap.apply(original), swap)
    # Anything but its base is plain Python.
    scope: dict = {}
    exec(compile(ast.parse(text), "leaf", "exec"), scope)
    assert scope["model"]["backbone"] == {"_delete_": True, **value}


@pytest.mark.integration
def test_command(tmp_path):
    """A path inside of folders, both ways; run, checked, and never overwritten."""
    base = tmp_path / "theirs/base.py"
    base.parent.mkdir()
    base.write_text(f"_base_ = {RETINANET!r}\n")
    (tmp_path / "mine").mkdir()
    line = [base, "--arch", "test", "--attn", "rala", "-o", "mine/new.py"]
    run = Run("swap_backbone.py", [*line, "--check"], tmp_path).succeeded()
    assert "note: optim_wrapper.optimizer is SGD" in run.out
    assert "mine/new.py: inherits ../theirs/base.py, 5 changes" in run.out
    assert "check: loss " in run.out
    cfg = Config.fromfile(tmp_path / "mine/new.py")
    assert cfg.model.backbone.attn_types == "rala"
    assert cfg.model.neck.in_channels == [32, 48, 64]
    before = (tmp_path / "mine/new.py").read_bytes()
    error = Run("swap_backbone.py", line, tmp_path).error()
    assert error == "error: 'mine/new.py' exists; name another file or remove it."
    assert (tmp_path / "mine/new.py").read_bytes() == before


PURE = """
from mmdet.models import FPN, ResNet, RetinaNet
default_scope = "mmdet"
neck = dict(type=FPN, in_channels=[256, 512, 1024, 2048], out_channels=8, num_outs=4)
model = dict(type=RetinaNet, backbone=dict(type=ResNet, depth=50), neck=neck)
"""


@pytest.mark.integration
def test_configs_in_pure_python(tmp_path):
    """They name classes; no text inherits them, but the whole can be written."""
    path = tmp_path / "pure.py"
    path.write_text(PURE)
    error = Run("swap_backbone.py", [path, "-o", "new.py"], tmp_path).error()
    assert error.startswith(f"error: '{path}' is a config in pure Python, which no")
    assert "ravlt.swap_backbone(cfg).dump('new.py')" in error
    swap_backbone(Config.fromfile(path)).dump(tmp_path / "new.py")
    new = Config.fromfile(tmp_path / "new.py")
    assert new.model.backbone == dict(type="RAVLT", arch="t")
    assert new.model.neck.in_channels == [64, 128, 256, 512]


@pytest.mark.integration
@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (["no.py", "-o", "new.py"], "Config 'no.py' does not exist; correct the path."),
        ([RETINANET, "-o", "new"], "--out 'new' must end in .py; rename it."),
        (
            [RETINANET, "--attn", "rala", "rala", "-o", "new.py"],
            "attn_types=('rala', 'rala') has 2 entries, but RAVLT has 4 stages",
        ),
        (
            ["mmdet::ssd/ssd300_coco.py", "-o", "new.py"],
            "model.backbone is SSDVGG, whose last layers are the first of SSD's head",
        ),
    ],
    ids=["no config", "no Python", "attention", "refused"],
)
def test_command_errors(tmp_path, line, expected):
    error = Run("swap_backbone.py", line, tmp_path).error()
    assert error.startswith(f"error: {expected}")
    assert not list(tmp_path.glob("new*"))
