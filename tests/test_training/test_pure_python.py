"""Configs in pure Python, whose types are classes, keep what protects every run."""

import pickle
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
from mmengine.config import Config

from helpers.tool_runs import TESTS, Run, read_scalars
from ravlt.analysis.subjects import build_subject
from ravlt.config import load_config, type_name
from ravlt.data.check.run import check_all_data
from ravlt.data.root import set_data_root
from ravlt.swap import leaf_config, plan_swap, swap_backbone

FOLDER = TESTS / "helpers/pure_python"


@dataclass(frozen=True)
class Host:
    name: str
    scope: str
    model: str
    metric: str
    loop: str
    last: int  # iteration at the end of the run
    longer: str  # option that doubles the run

    @property
    def config(self) -> Path:
        return FOLDER / f"{self.name}.py"


DETECTOR = Host(
    name="detector",
    scope="mmdet",
    model="RetinaNet",
    metric="coco/bbox_mAP",
    loop="SafeEpochBasedTrainLoop",
    last=8,
    longer="train_cfg.max_epochs=2",
)
SEGMENTOR = Host(
    name="segmentor",
    scope="mmseg",
    model="EncoderDecoder",
    metric="mDice",
    loop="SafeIterBasedTrainLoop",
    last=4,
    longer="train_cfg.max_iters=8",
)


@pytest.fixture(scope="module", params=[DETECTOR, SEGMENTOR], ids=lambda h: h.name)
def host(request) -> Host:
    return request.param


@pytest.fixture(scope="module")
def trained(host, shapes, tmp_path_factory) -> Path:
    """Train as a user would; returns the work directory."""
    cwd = tmp_path_factory.mktemp(host.name)
    line = [host.config, "--work-dir", "work", "--data-root", shapes]
    Run("train.py", line, cwd).succeeded()
    return cwd / "work"


@pytest.mark.integration
def test_training_has_every_protection(host, trained):
    assert list(trained.glob(f"best_{host.metric.replace('/', '_')}_iter_*.pth"))
    assert (trained / "curves.png").is_file()
    cfg = Config.fromfile(trained / f"{host.name}.py")
    assert cfg.default_scope == host.scope
    assert cfg.custom_imports.imports == ["ravlt"]
    assert cfg.train_cfg.type == host.loop
    checkpoint = cfg.default_hooks.checkpoint
    assert (checkpoint.type, checkpoint.save_best) == (
        "SafeCheckpointHook",
        host.metric,
    )
    # Mixed precision is turned off without a GPU, and two bad losses are left out.
    assert (cfg.optim_wrapper.type, cfg.optim_wrapper.skip) == ("FiniteOptimWrapper", 2)
    hooks = [hook.type for hook in cfg.custom_hooks]
    for kind in ("StopOnNonFiniteHook", "LossSpikeHook", "MissedEvaluationHook"):
        assert hooks.count(kind) == 1
    kinds = [backend.type.rpartition(".")[2] for backend in cfg.visualizer.vis_backends]
    assert kinds == ["LocalVisBackend", "TensorboardVisBackend"]
    if host is SEGMENTOR:  # or every evaluation is written as one of epoch 0
        assert cfg.default_hooks.logger.log_metric_by_epoch is False


@pytest.mark.integration
def test_resume_from_the_config_that_a_run_leaves(host, trained, shapes):
    left = trained / f"{host.name}.py"
    before = Config.fromfile(left).to_dict()
    line = [left, "--work-dir", "work", "--resume", "--cfg-options", host.longer]
    Run("train.py", line, trained.parent).succeeded()
    steps = [r["step"] for r in read_scalars(trained) if "loss" in r]
    assert steps == list(range(1, 2 * host.last + 1))
    # Nothing is added twice.
    after = Config.fromfile(left).to_dict()
    for cfg in (before, after):  # their order does not matter
        cfg["custom_hooks"].sort(key=type_name)
    changed = {key for key in after if before.get(key) != after[key]}
    assert changed == {"train_cfg", "load_from", "resume"}


@pytest.mark.integration
def test_a_broken_image_is_named(host, shapes, tmp_path):
    data = shutil.copytree(shapes, tmp_path / "shapes")
    for image in (data / "images/training").iterdir():
        image.write_bytes(image.read_bytes()[:-200])
    line = [host.config, "--work-dir", "work", "--data-root", data]
    error = Run("train.py", line, tmp_path).error()
    assert error.startswith(f"error: Cannot use '{data}/images/training/")


@pytest.mark.integration
def test_every_option_of_test(host, trained, shapes):
    out = "predictions" if host is SEGMENTOR else "predictions.pkl"
    line = [host.config, trained / f"iter_{host.last}.pth", "--data-root", shapes]
    line += ["--tta", "--deploy", "--show-dir", "pictures", "--out", out]
    Run("test.py", line, trained.parent).succeeded()
    pictures = list(trained.parent.rglob("pictures/**/*.[jp][pn]g"))
    assert len(pictures) == 4
    path = trained.parent / out
    predicted = (
        list(path.iterdir()) if path.is_dir() else pickle.loads(path.read_bytes())
    )
    assert len(predicted) == 4


@pytest.fixture
def left(host, tmp_path) -> Path:
    """Write the config as a run leaves it, with names in place of classes."""
    cfg = Config.fromfile(host.config)
    cfg.model.neck = [cfg.model.neck]  # a list, which a child has to write whole
    path = tmp_path / "left.py"
    cfg.dump(path)
    return path


def test_the_scope_is_the_models_host(host, left):
    for path in (host.config, left):
        cfg = load_config(str(path))
        assert cfg.default_scope == host.scope
        assert cfg.model.type.__name__ == host.model


def test_the_scope_of_a_class_of_ones_own(host, tmp_path, monkeypatch):
    package, module = host.scope, f"own_{host.name}"
    (tmp_path / f"{module}.py").write_text(
        f"from {package}.models import {host.model}\n\n"
        f"class Own({host.model}):\n    pass\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    path = tmp_path / "own.py"
    path.write_text(
        f"from {module} import Own\nmodel = dict(type=Own)\ndefault_scope = None\n"
    )
    assert load_config(str(path)).default_scope == host.scope


def test_data_check(host, shapes):
    cfg = load_config(str(host.config))
    set_data_root(cfg, str(shapes))
    assert check_all_data(cfg, 0) == []


def test_analysis_builds_the_model(host):
    model = build_subject(str(host.config), (64, 64))
    assert type(model).__name__ == host.model


def test_swap_finds_the_host(host):
    cfg = Config.fromfile(host.config)
    assert swap_backbone(cfg, "t").model.neck.in_channels == [64, 128, 256, 512]


def test_swap_of_the_config_that_a_run_leaves(left):
    cfg = load_config(str(left))
    swap = plan_swap(cfg, "t")
    child = left.with_name("child.py")
    child.write_text(leaf_config(left.name, cfg, swap.apply(cfg), swap))
    (neck,) = load_config(str(child)).model.neck
    assert neck.type.__name__ == "FPN"
    assert neck.in_channels == [64, 128, 256, 512]
