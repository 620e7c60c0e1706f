"""The sweep distinguishes the outcomes, and continues where it was interrupted."""

import json
from collections import defaultdict

import pytest
from mmengine.config import Config

import sweep
from coverage_table import coverage_table
from helpers.tool_runs import ROOT, Run
from ravlt import swap_backbone
from sweep import Result, cover, family_of, list_configs

pytestmark = pytest.mark.integration

TOOL = ROOT / "projects/swap_coverage/swap_coverage.py"
RETINANET = "mmdet::retinanet/retinanet_r50_fpn_1x_coco.py"
OLD = "mmdet::fast_rcnn/fast-rcnn_r50_fpn_1x_coco.py"
FRAGMENT = "mmdet::common/ms_3x_coco.py"
C4 = "mmdet::rpn/rpn_r50-caffe-c4_1x_coco.py"
SHARED = "mmdet::faster_rcnn/faster-rcnn_r50-caffe_c4-1x_coco.py"
# Its proposal head lacks an argument.
INCOMPLETE = "mmdet::cascade_rpn/cascade-rpn_r50-caffe_fpn_1x_coco.py"


@pytest.fixture(autouse=True)
def stay_here(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)  # monkeypatch restores the folder after cover()


def break_swaps(monkeypatch, change) -> None:
    """Put a fault into every swap."""

    def faulty(cfg: Config, arch: dict) -> Config:
        swapped = swap_backbone(cfg, arch)
        change(swapped.model)
        return swapped

    monkeypatch.setattr(sweep, "swap_backbone", faulty)


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
    result = cover(INCOMPLETE)
    assert result.outcome == "unavailable"
    assert "missing 1 required positional argument: 'num_classes'" in result.detail


def test_a_wrong_width_is_broken(monkeypatch):
    break_swaps(monkeypatch, lambda model: model.rpn_head.update(in_channels=7))
    result = cover(C4)
    assert result.outcome == "broken"
    assert result.detail.startswith("RuntimeError: ")


def test_a_parameter_without_gradient_is_broken(monkeypatch):
    """A norm whose output has no consumer stops DDP."""

    def change(model) -> None:
        model.backbone.out_indices = (0, 1, 2, 3)
        model.neck.update(in_channels=[64, 128, 192, 256], start_level=1)

    break_swaps(monkeypatch, change)
    result = cover(RETINANET)
    assert result.outcome == "broken"
    assert result.detail == "no gradient for extra_norms.0.norm.weight"


def test_a_model_is_tried_once(monkeypatch):
    """Configs with ResNet-50 and ResNet-101 become the same model."""
    first = cover(OLD)
    monkeypatch.setattr(sweep, "try_model", None)  # would fail
    other = OLD.replace("r50_fpn", "r101_fpn")
    again = cover(other, [Result(RETINANET, "runs", model="another"), first])
    assert (again.config, again.outcome, again.model) == (other, "runs", first.model)


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


def test_an_interrupted_sweep_continues(tmp_path):
    line = ["--only", "rpn/rpn_r50-caffe", "--out", "out", "--jobs", "1"]
    path = tmp_path / "out/results.jsonl"
    path.parent.mkdir()
    done = dict(config=C4, outcome="refused", detail="as a mark", model="")
    path.write_text(json.dumps(done) + "\n")
    run = Run(TOOL, line, tmp_path).succeeded()
    assert "1 configs to try, 1 done before" in run.out
    lines = [json.loads(text) for text in path.read_text().splitlines()]
    assert lines[0] == done
    assert [x["outcome"] for x in lines[1:]] == ["runs"]
    assert (tmp_path / "out/table.md").read_text() in run.out


def test_a_timeout_is_reported(tmp_path):
    line = ["--only", "mask_rcnn/mask-rcnn_r50_fpn_poly", "--out", "out"]
    line += ["--timeout", "0"]
    run = Run(TOOL, line, tmp_path).succeeded()
    assert "- took too long. In mmdet::mask_rcnn (1)." in run.out


# ------------------------------------------------------------------------ families

# Families that RAVLT cannot serve: a head is a part of the backbone or needs its class
# token, branches have one stride, the backbone decodes, or RAVLT lacks the strides.
REFUSED = {
    "mmdet": "centripetalnet cornernet detectors misc pascal_voc ssd tridentnet",
    "mmseg": (
        "bisenetv1 bisenetv2 cgnet ddrnet dpt erfnet fastscnn mobilenet_v3 pidnet "
        "san stdc unet"
    ),
}
# Families whose originals do not run on a CPU with only the hosts installed: they need
# optional packages, operators for GPUs or downloads.
UNAVAILABLE = {
    "mmdet": (
        "boxinst bytetrack carafe deepsort glip grounding_dino lad "
        "mm_grounding_dino nas_fcos ocsort paa queryinst reid rtmdet strongsort"
    ),
    "mmseg": "vpd",
}


def named(families: dict[str, str]) -> set[str]:
    return {f"{host}::{name}" for host in families for name in families[host].split()}


@pytest.mark.slow
def test_one_config_of_every_family(tmp_path):
    line = ["--each-family", "--jobs", "2", "--out", "out", "--timeout", "300"]
    Run(TOOL, line, tmp_path).succeeded(1500)
    families = defaultdict(set)
    for text in (tmp_path / "out/results.jsonl").read_text().splitlines():
        result = json.loads(text)
        families[result["outcome"]].add(family_of(result["config"]))
    assert families["broken"] == set()
    assert families["refused"] - named(UNAVAILABLE) == named(REFUSED)
    assert families["unavailable"] <= named(UNAVAILABLE)
    assert len(families["runs"]) >= 124
