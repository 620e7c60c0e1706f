"""Counts against formulas, and against the paper's tables."""

import subprocess
import sys
from dataclasses import replace

import pytest
import torch
import yaml
from torch import nn

from helpers.tool_runs import ENV, ROOT
from ravlt.analysis.costs.count import Cost, costs_of, count_costs
from ravlt.analysis.costs.zoo import Row, zoo_rows, zoo_table

TABLE = (ROOT / "docs/model_zoo.md").read_text().splitlines()
MASK_RCNN = "configs/mask_rcnn/mask-rcnn_ravlt-t_fpn_1x_coco.py"


def test_a_small_network_by_hand():
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Conv2d(3, 8, 3, stride=2, padding=1)
            self.unused = nn.Linear(4, 5)
            self.scale = nn.Parameter(torch.ones(7))

        def forward(self, x):
            x = self.stem(x).flatten(2)
            return x @ x.transpose(1, 2)

    stem = 8 * 3 * 9 * 16 * 24
    product = 8 * 8 * 16 * 24
    assert count_costs(Model(), (32, 48)) == {
        "stem": Cost(3 * 8 * 9 + 8, stem, stem),
        "unused": Cost(25, 0, 0),
        "rest": Cost(7, 0, product),
        "total": Cost(224 + 25 + 7, stem, stem + product),
    }


def ravlt_t_macs(height: int, width: int) -> dict[str, tuple[int, int]]:
    """Compute the MACs of RAVLT-T's stem and stages, without and with attention."""

    def conv(c_in, c_out, side, n):
        return c_in * c_out * side**2 * n

    grids = [(-(-height // s), -(-width // s)) for s in (2, 4, 8, 16, 32)]
    half, *tokens = [h * w for h, w in grids]
    stem = conv(3, 32, 3, half) + 2 * conv(32, 32, 3, half) + conv(32, 64, 3, tokens[0])
    macs = {"patch_embed": (stem, stem)}
    dims, depths, heads = (64, 128, 256, 512), (2, 2, 6, 2), (1, 2, 4, 8)
    for i, (c, n, depth, h) in enumerate(zip(dims, tokens, depths, heads, strict=True)):
        hidden, d = int(3.5 * c), c // h
        products = conv(c, 4 * c, 1, n) + conv(c, c, 1, n) + 2 * conv(c, hidden, 1, n)
        depthwise = (9 * c + 25 * c + 9 * hidden) * n
        rala = d + d + d * d + d * d  # logits of alpha, denominator, buffer, output
        attention = h * n * (rala if i < 2 else 2 * n * d)
        step = conv(c, dims[i + 1], 3, tokens[i + 1]) if i < 3 else 0
        plain = depth * (products + depthwise) + step
        macs[f"layers.{i}"] = (plain, plain + depth * attention)
    return macs


@pytest.mark.parametrize("size", [(224, 224), (200, 333)])
def test_ravlt_equals_its_formulas(size):
    costs = costs_of("ravlt_t", size)
    for name, expected in ravlt_t_macs(*size).items():
        assert (costs[name].macs_without_attention, costs[name].macs) == expected, name
    total = costs.pop("total")
    assert sum(costs.values(), Cost()) == total
    assert total.params == 13_345_408 + 2 * (64 + 128 + 256 + 512)


@pytest.mark.integration
def test_a_detector_part_by_part():
    costs = costs_of(str(ROOT / MASK_RCNN), (256, 320))
    total = costs.pop("total")
    assert "rest" not in costs
    assert sum(costs.values(), Cost()) == total
    # Boxes: 7 x 7 x 256 -> 1024 -> 1024 -> 81 and 320. Masks: four convolutions on
    # 14 x 14, one that doubles the side, one to 80 classes.
    boxes = 1000 * (49 * 256 * 1024 + 1024 * 1024 + 1024 * (81 + 320))
    masks = 100 * (4 * 196 * 9 * 256**2 + 196 * 4 * 256**2 + 28 * 28 * 256 * 80)
    assert costs["roi_head"].macs == boxes + masks
    plain = ravlt_t_macs(256, 320)
    assert costs["backbone.layers.2"].macs == plain["layers.2"][1]


@pytest.mark.integration
@pytest.mark.parametrize(
    "name",
    [
        # The constructor reads values of a tensor, which the meta device does not have.
        "mmseg::segformer/segformer_mit-b0_8xb2-160k_ade20k-512x512.py",
        # The head needs data samples.
        "mmseg::mask2former/mask2former_r50_8xb2-160k_ade20k-512x512.py",
        # The second head refines the output of the first.
        "mmseg::point_rend/pointrend_r50_4xb4-160k_ade20k-512x512.py",
        "mmdet::detr/detr_r50_8xb2-150e_coco.py",
    ],
    ids=lambda name: name.split("/")[-1].split("_")[0],
)
def test_models_of_the_hosts(name):
    costs = costs_of(name, (64, 64))
    total = costs.pop("total")
    assert sum(costs.values(), Cost()) == total
    assert costs["bbox_head" if "detr" in name else "decode_head"].macs > 0
    assert total.macs >= total.macs_without_attention > 0
    assert (total.macs > total.macs_without_attention) == ("point_rend" not in name)


# Numbers that a metafile has: the paper's, or counted here.
STATED = {
    path.parent.name: [
        entry
        for entry in yaml.safe_load(path.read_text())["Models"]
        if "Parameters (M)" in entry["Metadata"]
    ]
    for path in ROOT.glob("configs/*/metafile.yml")
}
# Their models branch on the values of tensors and are computed, at full size.
COMPUTED = ("dino", "mask2former")


@pytest.mark.integration
@pytest.mark.parametrize(
    "folder",
    [
        pytest.param(name, marks=[pytest.mark.slow] if name in COMPUTED else [])
        for name, stated in sorted(STATED.items())
        if stated
    ],
)
def test_the_committed_table_equals_the_counts(folder):
    """Only the sizes T and S; ``make zoo`` counts all."""
    found = list(zoo_rows(str(ROOT / "configs"), "ts", folder))
    assert found
    assert all(row.agrees for row in found)
    for line in zoo_table(found).splitlines():
        assert line in TABLE


def test_the_committed_table_has_every_row_in_agreement():
    cells = [
        [cell.strip() for cell in line.split("|")[1:-1]]
        for line in TABLE
        if line.startswith("| ") and "ravlt" in line
    ]
    stated = {entry["Name"]: entry for rows in STATED.values() for entry in rows}
    assert sorted(stated) == sorted(row[0] for row in cells)
    assert sum(bool(row[3]) for row in cells) == 25
    for name, size, params, paper_params, flops, paper_flops, _, everything in cells:
        metadata = stated[name]["Metadata"]
        in_paper = metadata["Results Source"].startswith("Paper")
        assert bool(paper_params) == bool(paper_flops) == in_paper, name
        key = f"FLOPs (G, {size.replace(' ', '')}, without attention products)"
        bound = 0.025 if size == "224 x 224" else 0.01
        assert round(float(params)) == metadata["Parameters (M)"], name
        assert abs(float(flops) / metadata[key] - 1) <= bound, name
        if in_paper:
            assert int(paper_params) == metadata["Parameters (M)"], name
            assert float(paper_flops) == metadata[key], name
        assert float(everything) > float(flops)


def test_models_agree_within_the_tolerance():
    cost = Cost(33_400_000, int(219e9), int(270e9))
    good = Row("m", (800, 1280), 33, 219, cost)
    assert good.agrees
    assert "| 33 |" in zoo_table([good])
    assert "| 33 |" not in zoo_table([replace(good, in_paper=False)])
    assert not Row("m", (800, 1280), 34, 219, cost).agrees
    assert not Row("m", (800, 1280), 33, 222, cost).agrees
    assert Row("m", (224, 224), 33, 222, cost).agrees


@pytest.mark.integration
def test_command():
    line = [sys.executable, "tools/analysis_tools/get_flops.py", MASK_RCNN]
    done = subprocess.run(
        [*line, "--shape", "256", "320"],
        cwd=ROOT,
        env=ENV,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    table = {line.split()[0]: line.split()[1:] for line in done.stdout.splitlines()[2:]}
    total = costs_of(str(ROOT / MASK_RCNN), (256, 320))["total"]
    assert table["total"] == [
        f"{total.params / 1e6:.3f}",
        f"{total.macs_without_attention / 1e9:.2f}",
        f"{total.macs / 1e9:.2f}",
    ]
