"""Families of the hosts' configs: nothing that runs as it is breaks."""

import json
from collections import defaultdict

import pytest
from running import Run

from ravlt.analysis.coverage import cover

# What people train most, and one of each kind of neck and head.
COMMON = [
    "mmdet::atss/atss_r50_fpn_1x_coco.py",
    "mmdet::cascade_rcnn/cascade-mask-rcnn_r50_fpn_1x_coco.py",
    "mmdet::deformable_detr/deformable-detr_r50_16xb2-50e_coco.py",
    "mmdet::fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py",
    "mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py",
    "mmdet::yolof/yolof_r50-c5_8xb8-1x_coco.py",
    "mmdet::yolox/yolox_s_8xb8-300e_coco.py",
    "mmseg::deeplabv3plus/deeplabv3plus_r50-d8_4xb2-40k_cityscapes-512x1024.py",
    "mmseg::mask2former/mask2former_r50_8xb2-160k_ade20k-512x512.py",
    "mmseg::segformer/segformer_mit-b0_8xb2-160k_ade20k-512x512.py",
    "mmseg::sem_fpn/fpn_r50_4xb4-160k_ade20k-512x512.py",
    "mmseg::upernet/upernet_r50_4xb4-160k_ade20k-512x512.py",
]

# What RAVLT cannot stand in for: a head that is a piece of the backbone, maps of one
# stride, a backbone that decodes or has branches, strides that RAVLT does not have.
REFUSED = {
    "mmdet": "centripetalnet cornernet detectors misc pascal_voc ssd tridentnet",
    "mmseg": (
        "beit bisenetv1 bisenetv2 cgnet ddrnet dpt erfnet fastscnn mae "
        "mobilenet_v3 pidnet san setr stdc unet vit"
    ),
}
# What does not run, as it is, on a CPU with nothing but the hosts installed: optional
# packages, operators for GPUs, downloads.
UNAVAILABLE = {
    "mmdet": (
        "boxinst bytetrack carafe convnext deepsort glip grounding_dino lad "
        "mm_grounding_dino nas_fcos ocsort paa queryinst reid rtmdet strongsort "
        "timm_example"
    ),
    "mmseg": "convnext poolformer vpd",
}


def named(families: dict[str, str]) -> set[str]:
    return {f"{host}::{name}" for host in families for name in families[host].split()}


@pytest.mark.parametrize("name", COMMON)
def test_what_people_train_most(monkeypatch, tmp_path, name):
    monkeypatch.chdir(tmp_path)  # and back again
    assert cover(name).outcome == "runs"


@pytest.mark.slow
def test_one_config_of_every_family(tmp_path):
    line = ["--each-family", "--jobs", "2", "--out", "out", "--timeout", "300"]
    Run("analysis_tools/swap_coverage.py", line, tmp_path).succeeded(1500)
    families = defaultdict(set)
    for text in (tmp_path / "out/results.jsonl").read_text().splitlines():
        result = json.loads(text)
        families[result["outcome"]].add(result["config"].partition("/")[0])
    assert families["broken"] == set()
    assert families["refused"] - named(UNAVAILABLE) == named(REFUSED)
    assert families["unavailable"] <= named(UNAVAILABLE)
    assert len(families["runs"]) >= 120
