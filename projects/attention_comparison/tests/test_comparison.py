"""Networks of the comparison differ only in the core; tables report every seed."""

import csv
import json
import statistics
from dataclasses import replace

import pytest
import torch

import comparison
from comparison import (
    TASKS,
    Trial,
    build_segmentor,
    make_config,
    measure_ranks,
    reach,
    time_steps,
)
from comparison_report import summarise
from cue import CUE_COLUMNS, OBJECT_COLUMNS, SIZE, write_cue
from helpers.tool_runs import ROOT, SEG, Run
from ravlt.data.random_batch import make_batch
from ravlt.models import GatedAttention
from ravlt.models.attention import CORES

pytestmark = pytest.mark.integration

TOOL = ROOT / "projects/attention_comparison/compare_attentions.py"


def trial(task: str, attention: str, seed: int = 0, iters: int = 2) -> Trial:
    return Trial(str(SEG), task, attention, seed, iters)


@pytest.mark.parametrize("task", TASKS)
def test_configs_differ_in_the_attention_only(task):
    names = ["rala", "diag", "gla"]
    configs = [make_config(trial(task, name), "data", "work") for name in names]
    types = []
    for cfg in configs:
        types.append(cfg.model.backbone.pop("attn_types"))
        cfg.pop("experiment_name")
    assert types == names
    assert all(cfg.to_dict() == configs[0].to_dict() for cfg in configs)


def test_first_weights_are_the_same_but_for_what_a_core_adds():
    plain = build_segmentor(trial("cue", "rala", seed=5)).state_dict()
    for name in ("diag", "softmax"):
        other = build_segmentor(trial("cue", name, seed=5)).state_dict()
        assert other.keys() == plain.keys()
        assert all(torch.equal(other[key], plain[key]) for key in plain)
    other = build_segmentor(trial("cue", "rala", seed=6)).state_dict()
    assert not torch.equal(
        other["backbone.patch_embed.proj.0.weight"],
        plain["backbone.patch_embed.proj.0.weight"],
    )


@pytest.mark.parametrize("name", CORES)
def test_the_cue_is_seen_by_attention_alone(name):
    model = build_segmentor(trial("cue", name))
    first, last = reach(model, SIZE, slice(*OBJECT_COLUMNS))
    assert last == SIZE[1] - 1
    assert (first >= CUE_COLUMNS[1]) == (name == "diag")
    # Flips in training exchange both ends.
    first, last = reach(model, SIZE, slice(0, SIZE[1] - OBJECT_COLUMNS[0]))
    assert (last < SIZE[1] - CUE_COLUMNS[1]) == (name == "diag")


def test_no_convolution_reaches_as_far():
    model = build_segmentor(trial("cue", "linear"))
    for layer in model.modules():
        if isinstance(layer, GatedAttention):
            layer.core.forward = lambda q, k, v, hw: v
    first, _ = reach(model, SIZE, slice(*OBJECT_COLUMNS))
    assert OBJECT_COLUMNS[0] - first < 64 < OBJECT_COLUMNS[0] - CUE_COLUMNS[1]


def test_ranks_are_of_whole_layers():
    model = build_segmentor(trial("cue", "linear")).eval()
    seen = []
    for layer in model.modules():
        if isinstance(layer, GatedAttention):
            layer.core.register_forward_hook(lambda _, x, y: seen.append(y))
    data = make_batch(model, 2, SIZE, train=False)
    ranks = list(measure_ranks(model, data).values())
    assert len(ranks) == len(seen) == 2
    for found, mixed in zip(ranks, seen, strict=True):
        values = torch.linalg.svdvals(mixed.double().transpose(1, 2).flatten(2))
        shares = values / values.sum(-1, keepdim=True)
        entropy = torch.special.entr(shares).sum(-1)
        assert found["core"] == pytest.approx(entropy.exp().mean().item(), rel=1e-6)
        assert found["core"] < found["output"] <= found["full"] == 32


def test_steps_take_turns_and_train(monkeypatch):
    turns = []

    def measure(step, device, warmup, repeat):
        turns.append(step)
        before, after = step(), step()
        assert after["loss"] != before["loss"]
        return [float(len(turns)), 10.0 * len(turns), 100.0 * len(turns)]

    monkeypatch.setattr(comparison, "measure_times", measure)
    torch.manual_seed(0)
    rows = time_steps([trial("cue", "linear"), trial("cue", "diag")], rounds=2)
    assert turns[:2] == turns[2:] and turns[0] is not turns[1]
    assert rows[0] == dict(
        task="cue", attention="linear", seconds=20.0, seconds_min=1.0, seconds_max=300.0
    )


def result(task, attention, seed, miou, core) -> dict:
    layers = {
        "a": dict(core=core, output=8.0, full=16),
        "b": dict(core=2 * core, output=8.0, full=32),
    }
    return dict(
        task=task,
        attention=attention,
        seed=seed,
        miou=miou,
        params=2500,
        macs=3_000_000,
        ranks=dict(before=layers, after=layers),
    )


def test_summary():
    rows = summarise(
        [
            result("cue", "diag", 0, 0.25, 4.0),
            result("cue", "rala", 0, 0.5, 4.0),
            result("cue", "rala", 1, 0.75, 8.0),
            result("shapes", "rala", 0, 0.9, 4.0),
        ],
        [dict(task="cue", attention="rala", seconds=0.02)],
    )
    names = [(row["task"], row["attention"]) for row in rows]
    assert names == [("cue", "rala"), ("cue", "diag"), ("shapes", "rala")]
    best = rows[0]
    assert (best["miou"], best["miou_min"], best["miou_max"]) == (0.625, 0.5, 0.75)
    assert (best["seeds"], best["params_k"], best["mmacs"]) == (2, 2.5, 3.0)
    assert (best["step_ms"], rows[1]["step_ms"]) == (20.0, None)
    assert best["core_before"] == 100 * statistics.mean([0.25, 0.25, 0.5, 0.5])
    assert best["output_after"] == pytest.approx(37.5)


def few_images() -> None:
    """Reduce data set and timing, in the process of the tool."""
    TASKS["cue"] = replace(TASKS["cue"], write=lambda root: write_cue(root, 8, 4))
    comparison._REPEAT = 1


def read(out) -> list[dict]:
    return [json.loads(line) for line in (out / "results.jsonl").open()]


def test_tool_trains_what_is_left_and_reports_all(tmp_path):
    line = ["--attentions", "rala", "linear", "--seeds", 0, "--iters", 2]
    line += ["--out", "out"]
    out = tmp_path / "out"
    out.mkdir()
    there = [
        dict(result(task, name, 0, miou, 4.0), iters=iters)
        for task, name, miou, iters in [
            ("shapes", "rala", 0.5, 2),
            ("shapes", "linear", 0.25, 2),
            ("cue", "linear", 0.75, 2),
            ("cue", "rala", 0.9, 500),  # another trial: more iterations
        ]
    ]
    lines = "".join(json.dumps(row) + "\n" for row in there)
    (out / "results.jsonl").write_text(lines)
    run = Run(TOOL, line, tmp_path, few_images).succeeded()
    assert "Trainings left: 1 of 4." in run.out
    *kept, row = read(out)
    assert kept == there
    assert [row[k] for k in ("task", "attention", "seed", "iters")] == [
        *("cue", "rala", 0, 2)
    ]
    model = build_segmentor(trial("cue", "rala"))
    assert row["params"] == sum(p.numel() for p in model.parameters())
    assert 0 <= row["miou"] <= 1 and row["macs"] > 1e6 and row["seconds"] > 0
    assert row["ranks"]["before"] != row["ranks"]["after"]
    with open(out / "table.csv") as file:
        table = list(csv.DictReader(file))
    shown = {(r["task"], r["attention"]): float(r["miou"]) for r in table}
    assert shown == {(r["task"], r["attention"]): r["miou"] for r in [*there[:3], row]}
    assert all(float(r["step_ms"]) > 0 for r in table)
    assert (out / "comparison.png").stat().st_size > 10_000
    text = (out / "table.md").read_text()
    assert "### cue" in text and "### shapes" in text and "| linear |" in text
    (out / "results.jsonl").write_text("no result\n")
    assert "remove that line" in Run(TOOL, line, tmp_path).error()
