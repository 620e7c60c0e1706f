"""One config of every family of the hosts: nothing that runs as it is breaks."""

import json
from collections import defaultdict

from running import Run

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
