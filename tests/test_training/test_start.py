"""The start of a run: a wrong backbone first, then a summary, details in the log."""

import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from mmengine.config import Config
from mmengine.registry import MODELS
from mmengine.runner import Runner
from torch import nn

from helpers.toy_runs import Toy
from ravlt.errors import RAVLTError
from ravlt.models.attention import CORES
from ravlt.training import start
from ravlt.training.guards import signals
from ravlt.training.start import build_runner, check_backbones


def backbone(**arguments) -> Config:
    part = dict(type="RAVLT", **{"arch": "test", **arguments})
    return Config(dict(model=dict(type="Wrapper", detectors=[dict(backbone=part)])))


@pytest.mark.parametrize("attention", sorted(CORES))
def test_sound_backbones_pass(attention):
    check_backbones(backbone(attn_types=attention))
    check_backbones(backbone(attn_types=dict(type=attention, profile="paper")))


def test_wrong_backbones_fail_wherever_they_are():
    with pytest.raises(RAVLTError, match="arch='xl' is unknown"):
        check_backbones(backbone(arch="xl"))
    with pytest.raises(TypeError, match="'drop_path'"):
        check_backbones(backbone(drop_path=0.1))


def test_other_backbones_are_not_built():
    check_backbones(Config(dict(model=dict(backbone=dict(type="NoSuchNet")))))


def test_runner_of_the_user_is_kept(monkeypatch):
    built = []
    registry = SimpleNamespace(build=lambda cfg: built.append(cfg) or "theirs")
    monkeypatch.setattr(start, "RUNNERS", registry)
    cfg = Config(dict(runner_type="TheirRunner"))
    assert build_runner(cfg) == "theirs" and built == [cfg]


# ------------------------------------------------------------------------ summary


@pytest.fixture(autouse=True)
def toy():
    MODELS.register_module("StartToy", module=Toy)
    yield
    MODELS.module_dict.pop("StartToy")


def test_summary_follows_the_silence(tmp_path, capsys):
    runner = _toy_runner(tmp_path, by_epoch=True)
    runner.logger.info("a detail of the start")
    runner.logger.warning("a warning of the start")
    runner.train()
    out = capsys.readouterr().out
    before, after = out.split(" - Training\n")
    assert "a detail" not in before and "a warning of the start" in before
    assert before.count("INFO") == 1  # of the summary itself
    lines = after.splitlines()
    assert lines[:4] == [
        # A batch norm and a linear layer of one channel.
        "  model: Toy, 0.00 M parameters",
        "  weights: random",
        "  data: 8 images",
        "  length: 2 epochs, 8 iterations of 2 images",
    ]
    assert lines[4] == f"  work directory: {tmp_path}"
    assert re.search(r"Epoch\(train\)\s+\[2\]\[4/4\]", after)
    log = Path(runner.logger.log_file).read_text()
    assert lines[5].endswith(f": {runner.logger.log_file}")
    for text in ("System environment", "a detail of the start", " - Training\n"):
        assert log.count(text) == 1
    assert "Hooks will be executed" in log and "[2][4/4]" in log


def test_nothing_of_it_is_in_the_config_left_behind(tmp_path):
    runner = _toy_runner(tmp_path, by_epoch=False)
    assert "StartHook" not in runner.cfg.pretty_text
    assert "runner_type" not in runner.cfg


def _toy_runner(folder, by_epoch: bool) -> Runner:
    data = [{"inputs": float(i)} for i in range(8)]
    length = dict(max_epochs=2) if by_epoch else dict(max_iters=8)
    loader = dict(
        dataset=data,
        sampler=dict(type="DefaultSampler", shuffle=False),
        batch_size=2,
        num_workers=0,
    )
    cfg = dict(
        model=dict(type="StartToy"),
        work_dir=str(folder),
        train_dataloader=loader,
        train_cfg=dict(by_epoch=by_epoch, **length),
        optim_wrapper=dict(optimizer=dict(type="SGD", lr=0.1)),
        default_hooks=dict(logger=dict(type="LoggerHook", interval=1)),
        experiment_name=str(folder).replace("/", "_"),
        default_scope="mmengine",
    )
    return build_runner(Config(cfg))


def weights_of(iteration: int = 0, **cfg) -> str:
    runner = SimpleNamespace(iter=iteration, cfg=Config(dict(model={}, **cfg)))
    return start._describe_weights(runner)


def test_where_weights_come_from():
    assert weights_of() == "random"
    assert weights_of(load_from="a.pth") == "a.pth"
    assert weights_of(7, load_from="a.pth") == "resumed after iteration 7"
    cfg = backbone(init_cfg=dict(type="Pretrained", checkpoint="b.pth"))
    runner = SimpleNamespace(iter=0, cfg=cfg)
    assert start._describe_weights(runner) == "b.pth"


def test_size_of_the_backbone():
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.backbone = nn.Linear(2999, 1000)  # with biases 3 million
            self.head = nn.Linear(999, 500)  # half a million

    assert start._describe_model(Net()) == (
        "Net, 3.50 M parameters, 3.00 M of them in Linear"
    )


@pytest.mark.parametrize(
    ("meta", "text"),
    [
        (None, "2 images"),
        ({}, "2 images"),
        (dict(classes=None), "2 images"),
        (dict(classes=(1, 2)), "2 images, 2 classes (1, 2)"),
        (dict(classes=np.array(["a", "b"])), "2 images, 2 classes (a, b)"),
    ],
)
def test_data_sets_of_any_class_are_described(meta, text):
    class Data(list):
        metainfo = meta

    loader = SimpleNamespace(dataset=Data([0, 1]))
    assert start._describe_data(loader) == text


def test_a_loader_without_data_set_is_described():
    assert start._describe_data(iter(())) == "images"


def test_workers_survive_sigterm_in_any_loop(tmp_path):
    """Also with ``safety.exact_resume=False``, which leaves the loops as they are."""
    runner = _toy_runner(tmp_path, by_epoch=True)
    sampler = dict(type="DefaultSampler", shuffle=False)
    loader = runner.build_dataloader(dict(dataset=[0], batch_size=1, sampler=sampler))
    assert loader.worker_init_fn.func is signals._start_worker
    once = loader.worker_init_fn
    signals.shield_workers(loader)
    assert loader.worker_init_fn is once
