"""One config of every family of the hosts: nothing that runs as it is breaks."""

import json
from collections import defaultdict

from running import Run

# What RAVLT cannot stand in for: heads that are a piece of the backbone, one scale,
# networks that decode inside.
REFUSED: set[str] = set()
# What does not run on a CPU with nothing but the hosts installed: optional packages,
# operators for GPUs, downloads.
UNAVAILABLE: set[str] = set()


def test_one_config_of_every_family(tmp_path):
    line = ["--each-family", "--jobs", "2", "--out", "out", "--timeout", "300"]
    Run("analysis_tools/swap_coverage.py", line, tmp_path).succeeded(1500)
    families = defaultdict(set)
    for text in (tmp_path / "out/results.jsonl").read_text().splitlines():
        result = json.loads(text)
        family = result["config"].partition("/")[0].replace("::", "/")
        families[result["outcome"]].add(family)
    assert families["broken"] == set()
    assert families["refused"] == REFUSED
    assert families["unavailable"] <= UNAVAILABLE
    assert len(families["runs"]) >= 120
