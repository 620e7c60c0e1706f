"""The benchmark: counts, measurements, files and errors."""

import csv
import json
import os

import pytest
import torch
from PIL import Image
from torch import nn

from helpers.tool_runs import DET, Run
from ravlt.analysis.costs.macs import count_macs
from ravlt.analysis.speed.report import growth, markdown_table
from ravlt.analysis.speed.timing import describe_machine, peak_memory, saved_bytes
from ravlt.analysis.subjects import build_subject, make_step
from ravlt.errors import RAVLTError
from ravlt.models import RAVLT


def benchmark(cwd, *args) -> Run:
    line = [*args, "--warmup", "0", "--repeat", "2", "--threads", "1"]
    return Run("analysis_tools/benchmark.py", line, cwd)


@pytest.mark.integration
def test_files_and_columns(tmp_path):
    models = ["ravlt_test:rala"]
    sizes = ["64x64", "128x96"]
    done = benchmark(
        tmp_path, *models, "--sizes", *sizes, "--deploy", "--rounds", "1", "--out", "b"
    ).succeeded()
    out = tmp_path / "b"
    assert sorted(os.listdir(out)) == [
        "growth.png",
        "results.csv",
        "results.json",
        "table.md",
    ]
    assert (out / "table.md").read_text() == done.out
    rows = json.loads((out / "results.json").read_text())["rows"]
    assert [(r["model"], r["size"]) for r in rows] == [
        (m, s) for s in sizes for m in models
    ]
    for row in rows:
        assert len(row["times"]) == 2
        assert 0 < row["seconds_min"] <= row["seconds"] <= row["seconds_max"]
        work = row["gmacs"] / row["seconds"]
        share = work / row["matmul_gmacs_per_second"]
        assert row["matmul_share"] == pytest.approx(share)
    with open(out / "results.csv") as file:
        assert [r["model"] for r in csv.DictReader(file)] == [r["model"] for r in rows]
    with Image.open(out / "growth.png") as image:
        assert image.width > 1000

    again = benchmark(tmp_path, *models, "--out", "b")
    assert again.error() == "error: --out 'b' exists; name a new folder."
    assert again.err.count("\n") == 1


@pytest.mark.integration
def test_training(tmp_path):
    flags = ["--train", "--with-cp", "--dtype", "bfloat16", "--rounds", "1"]
    done = benchmark(tmp_path, "ravlt_test", "--sizes", "64x64", *flags).succeeded()
    assert "kept for backward (MB)" in done.out


@pytest.mark.integration
def test_models_of_configs(tmp_path):
    done = benchmark(tmp_path, DET, "--sizes", "64x64", "--rounds", "1").succeeded()
    assert f"| {DET} | 64x64 | 1 |" in done.out


@pytest.mark.integration
def test_failures_are_one_line(tmp_path):
    models, flags = ["no_such_net", "ravlt_test"], ["--rounds", "1"]
    done = benchmark(tmp_path, *models, "--sizes", "32x32", *flags).succeeded()
    assert "no_such_net at 32x32 failed: error: 'no_such_net' is no config" in (
        done.err
    )
    assert "| ravlt_test | 32x32 |" in done.out

    error = benchmark(tmp_path, "ravlt_test", "--sizes", "32").error()
    assert error.startswith("error: --sizes has '32'; write height x width")


def test_macs_of_the_paper_and_of_everything():
    """Counts of RAVLT-T at 800 x 1280, without and with the products of attention."""
    with torch.device("meta"):
        model = RAVLT("t").eval()
        linear = RAVLT("t", attn_types="rala").eval()
        x = torch.empty(1, 3, 800, 1280)
    without_attention, total = count_macs(lambda: model(x))
    assert without_attention / 1e9 == pytest.approx(48.7, abs=0.05)
    assert (total - without_attention) / 1e9 == pytest.approx(52.8, abs=0.05)
    assert count_macs(lambda: linear(x))[1] / 1e9 == pytest.approx(51.2, abs=0.05)
    # By hand: a 3 x 3 convolution, and a product of two activations.
    conv = nn.Conv2d(3, 5, 3, padding=1)
    counted = count_macs(lambda: conv(torch.ones(2, 3, 8, 8)))
    assert counted == (2 * 64 * 5 * 27, 2 * 64 * 5 * 27)
    a = torch.ones(2, 4, 6)
    assert count_macs(lambda: a @ a.mT) == (0, 2 * 4 * 6 * 4)


def test_subjects():
    released = build_subject("ravlt_test", (64, 64))
    assert released.attn_types == ("rala", "rala", "softmax", "softmax")
    mixed = build_subject("ravlt_test:rala,rala,rala,linear", (64, 64), with_cp=True)
    assert mixed.attn_types == ("rala", "rala", "rala", "linear")
    assert all(stage.with_cp for stage in mixed.layers)
    with pytest.raises(RAVLTError, match="'swine' is no config file, no timm model"):
        build_subject("swine", (64, 64))
    step = make_step(released, "ravlt_test", 2, (32, 64), train=True)
    assert step().shape == ()
    features = make_step(released, "ravlt_test", 2, (32, 64), train=False)()
    assert features[0].shape == (2, 16, 8, 16)


def test_memory_of_known_calls():
    held = []
    grown = peak_memory(
        lambda: held.append(torch.ones(25_000_000)), torch.device("cpu")
    )
    assert grown == pytest.approx(100e6, rel=0.05)

    model = nn.ParameterList([torch.ones(1000)])
    weight, unused = model[0], nn.Linear(2, 2)
    # exp saves its result, the product both factors; sums save nothing.
    assert saved_bytes(lambda: (weight.exp() * weight).sum(), unused) == 8000
    assert saved_bytes(lambda: (weight.exp() * weight).sum(), model) == 4000


def test_growth_of_a_power_law():
    rows = [
        dict(model="a", size=f"{n}x{n}", seconds=3 * float(n * n) ** 1.5)
        for n in (8, 16, 64)
    ]
    rows.append(dict(model="b", size="8x8", seconds=1.0))
    assert growth(rows, "seconds") == {"a": pytest.approx(1.5)}
    assert growth(rows, "peak_mb") == {}


def test_table_leaves_out_empty_columns():
    table = markdown_table([dict(model="a", seconds=0.1234, params_m=123.4)])
    assert table.splitlines() == [
        "| model | params (M) | time (s) |",
        "|---|---|---|",
        "| a | 123 | 0.123 |",
    ]


def test_a_machine_without_sysconf(monkeypatch):
    """Windows has no os.sysconf."""
    device = torch.device("cpu")
    assert describe_machine(device)["memory"].endswith(" GiB")
    monkeypatch.delattr(os, "sysconf")
    assert describe_machine(device)["memory"] == "unknown"
