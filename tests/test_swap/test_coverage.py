"""The sweep tells what runs from what is broken, and goes on where it stopped."""

import copy
import json

import pytest
from mmengine.config import Config
from running import Run
from swap_cases import RETINANET, load

from ravlt import RAVLTError, swap_backbone
from ravlt.analysis import coverage
from ravlt.analysis.coverage import Result, cover, list_configs
from ravlt.analysis.coverage_table import coverage_table
from ravlt.analysis.trial import try_model

OLD = "mmdet::fast_rcnn/fast-rcnn_r50_fpn_1x_coco.py"
FRAGMENT = "mmdet::common/ms_3x_coco.py"
C4 = "mmdet::rpn/rpn_r50-caffe-c4_1x_coco.py"
SHARED = "mmdet::faster_rcnn/faster-rcnn_r50-caffe_c4-1x_coco.py"
NO_CPU = "mmdet::carafe/faster-rcnn_r50_fpn-carafe_1x_coco.py"


@pytest.fixture(autouse=True)
def stay_here(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)  # and back again


def break_swaps(monkeypatch, change) -> None:
    """Lets a fault into every swap."""

    def faulty(cfg: Config, arch: dict) -> Config:
        swapped = swap_backbone(cfg, arch)
        change(swapped.model)
        return swapped

    monkeypatch.setattr(coverage, "swap_backbone", faulty)


def test_every_shipped_config_is_listed():
    names = list_configs()
    assert {RETINANET, FRAGMENT, C4} <= set(names)
    assert len(names) == len(set(names))
    assert not any("_base_" in name for name in names)


def test_outcomes():
    assert cover(C4).outcome == "runs"
    assert cover(FRAGMENT) == Result(FRAGMENT, "no model")
    assert cover(SHARED).outcome == "refused"
    assert "shared_head" in cover(SHARED).detail
    result = cover(NO_CPU)
    assert result.outcome == "unavailable"
    assert "implementation for device cpu not found" in result.detail


def test_a_wrong_width_is_broken(monkeypatch):
    break_swaps(monkeypatch, lambda model: model.rpn_head.update(in_channels=7))
    result = cover(C4)
    assert result.outcome == "broken"
    assert result.detail.startswith("RuntimeError: ")


def test_a_parameter_without_gradient_is_broken(monkeypatch):
    """What would stop DDP: a norm of a stage that nothing reads."""

    def change(model) -> None:
        model.backbone.out_indices = (0, 1, 2, 3)
        model.neck.update(in_channels=[64, 128, 192, 256], start_level=1)

    break_swaps(monkeypatch, change)
    result = cover(RETINANET)
    assert result.outcome == "broken"
    assert result.detail == "no gradient for extra_norms.0.norm.weight"


def test_a_model_is_tried_once(monkeypatch):
    """ResNet-50 and -101 leave the same model behind."""
    first = cover(OLD)
    monkeypatch.setattr(coverage, "try_model", None)  # would fail
    other = OLD.replace("r50_fpn", "r101_fpn")
    again = cover(other, [Result(RETINANET, "runs", model="another"), first])
    assert (again.config, again.outcome, again.model) == (other, "runs", first.model)


def test_a_loss_that_is_not_finite_is_told():
    cfg = swap_backbone(load(RETINANET), "test")
    cfg.model.bbox_head.loss_cls.loss_weight = float("inf")
    with pytest.raises(RAVLTError, match="In one training step the loss is not finite"):
        try_model(cfg, [64])


def test_trying_changes_nothing():
    cfg = swap_backbone(load(RETINANET), "test", pretrained="no/such.pth")
    before = copy.deepcopy(cfg.to_dict())
    trial = try_model(cfg, [64])
    assert trial.loss > 0
    assert trial.idle == []
    assert cfg.to_dict() == before


def test_table():
    results = [
        Result("mmdet::a/1.py", "runs"),
        Result("mmdet::a/2.py", "runs"),
        Result("mmdet::a/3.py", "refused", "Because."),
        Result("mmdet::b/1.py", "broken", "KeyError: x"),
        Result("mmseg::c/1.py", "unavailable", "ImportError: y"),
        Result("mmseg::c/2.py", "unavailable", "ImportError: y"),
    ]
    table = coverage_table(results)
    assert table.startswith(
        "6 configs: 2 runs, 1 refused, 1 broken, 2 unavailable, 0 no model. Of those "
        "with a pyramid that run here as they are, 66.7% run with RAVLT."
    )
    assert "| a | 2 | 1 |  |  |  |" in table
    assert "| c |  |  |  | 2 |  |" in table
    assert "- KeyError: x. In mmdet::b (1)." in table
    assert "- ImportError: y. In mmseg::c (2)." in table


def test_a_sweep_goes_on_where_it_stopped(tmp_path):
    line = ["--only", "rpn/rpn_r50-caffe", "--out", "out", "--jobs", "1"]
    path = tmp_path / "out/results.jsonl"
    path.parent.mkdir()
    done = dict(config=C4, outcome="refused", detail="as a mark", model="")
    path.write_text(json.dumps(done) + "\n")
    run = Run("analysis_tools/swap_coverage.py", line, tmp_path).succeeded()
    assert "1 configs to try, 1 done before" in run.out
    lines = [json.loads(text) for text in path.read_text().splitlines()]
    assert lines[0] == done
    assert [x["outcome"] for x in lines[1:]] == ["runs"]
    assert (tmp_path / "out/table.md").read_text() in run.out


def test_what_takes_too_long_is_told(tmp_path):
    line = ["--only", "mask_rcnn/mask-rcnn_r50_fpn_poly", "--out", "out"]
    line += ["--timeout", "0"]
    run = Run("analysis_tools/swap_coverage.py", line, tmp_path).succeeded()
    assert "- took too long. In mmdet::mask_rcnn (1)." in run.out
