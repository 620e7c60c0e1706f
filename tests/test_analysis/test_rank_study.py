"""Ranks of models: the training hook, studies of images, and the command."""

import csv
import json
import math

import numpy as np
import pytest
import torch
from mmengine.model import BaseModel
from mmengine.runner import Runner
from PIL import Image
from torch import nn

from helpers.spectra import draw, spectra
from helpers.tool_runs import ROOT, SEG, Run, read_scalars
from ravlt.analysis.attention.rank_study import find_images, load_subject, study
from ravlt.errors import RAVLTError
from ravlt.models import RAVLT
from ravlt.models.attention import CORES

# ---------------------------------------------------------------------------- hook


class Tiny(BaseModel):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.backbone = RAVLT("test", out_indices=(0, 2), with_cp=True)

    def forward(self, inputs, mode="tensor"):
        maps = self.backbone(torch.stack(list(inputs)))
        return {"loss": sum(x.square().mean() for x in maps)}


def runner_of(model: BaseModel, work_dir) -> Runner:
    return Runner(
        model=model,
        work_dir=str(work_dir),
        train_dataloader=dict(
            dataset=[{"inputs": draw(3, 32, 48, seed=i).float()} for i in range(2)],
            sampler=dict(type="InfiniteSampler", shuffle=False),
            batch_size=2,
            num_workers=0,
        ),
        train_cfg=dict(type="IterBasedTrainLoop", max_iters=5),
        # With a learning rate of 0 every iteration computes the same.
        optim_wrapper=dict(optimizer=dict(type="SGD", lr=0.0)),
        default_hooks=dict(checkpoint=None, logger=dict(type="LoggerHook", interval=1)),
        custom_hooks=[dict(type="EffectiveRankHook", interval=2)],
        visualizer=dict(type="Visualizer", vis_backends=[dict(type="LocalVisBackend")]),
        default_scope="mmengine",
        experiment_name=str(work_dir),
        log_level="ERROR",
    )


def entropy_rank(values: np.ndarray) -> float:
    share = values / values.sum()
    return math.exp(-(share * np.log(share)).sum())


def test_hook_logs_the_ranks_of_a_training_run(tmp_path):
    model = Tiny()
    runner = runner_of(model, tmp_path)
    runner.train()
    lines = {line["step"]: line for line in read_scalars(tmp_path)}
    logs = {
        name: {step: line[name] for step, line in lines.items() if name in line}
        for name in set().union(*lines.values())
        if "rank" in name
    }
    layers = [
        f"backbone.layers.{stage}.blocks.{block}.attn"
        for stage, block in ((0, 0), (1, 0), (2, 0), (2, 1))
    ]
    rala = layers[:2]  # the third stage's is softmax
    assert set(logs) == {f"rank_output/{layer}" for layer in layers} | {
        f"rank_kv/{layer}" for layer in rala
    }
    seen = {}
    for layer in layers:
        model.get_submodule(layer).proj.register_forward_pre_hook(
            lambda _, x, layer=layer: seen.update({layer: x[0].detach()})
        )
    model([draw(3, 32, 48, seed=i).float() for i in range(2)])
    for layer in layers:
        expected = np.mean(
            [
                entropy_rank(spectra(x.flatten(0, 1).double()).numpy())
                for x in seen[layer]
            ]
        )
        values = logs[f"rank_output/{layer}"]
        assert values == pytest.approx(dict.fromkeys((2, 3, 4, 5), expected), rel=1e-4)
        scalar = runner.message_hub.get_scalar(f"train/rank_output/{layer}")
        assert len(scalar.data[0]) == 2  # iterations 2 and 4
    assert not any(m._forward_hooks for m in model.modules())
    for layer, full in zip(rala, (16, 32), strict=True):
        assert 1 <= logs[f"rank_kv/{layer}"][2] <= full


def test_hook_refuses_a_model_without_attention_layers(tmp_path):
    model = Tiny()
    model.backbone = nn.Conv2d(3, 3, 1)
    with pytest.raises(RAVLTError, match="Tiny has no RAVLT attention layer"):
        runner_of(model, tmp_path).train()


# ------------------------------------------------------------------------- command

CONFIG = f"""
_base_ = {str(SEG)!r}
model = dict(
    backbone=dict(arch='test', attn_types=('rala', 'norm', 'softmax', 'softmax')),
    neck=dict(in_channels=[16, 32, 48, 64]),
)
"""
TOOL = "analysis_tools/rank_analysis.py"
ATTENTION = ("rala", "norm", "softmax", "softmax")


@pytest.fixture
def images(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    for i, name in enumerate(("a.png", "b.JPG")):
        pixels = np.random.default_rng(i).integers(
            256, size=(40, 60, 3), dtype=np.uint8
        )
        Image.fromarray(pixels).save(folder / name)
    (folder / "notes.txt").write_text("no image")
    return folder


@pytest.mark.integration
def test_command(tmp_path, images):
    (tmp_path / "config.py").write_text(CONFIG)
    torch.manual_seed(5)
    weights = RAVLT("test", ATTENTION).state_dict()
    for key in weights:
        if "qkvo.weight" in key:
            weights[key] *= 5  # differs from random initial weights
    weights = {f"backbone.{key}": value for key, value in weights.items()}
    torch.save({"state_dict": weights}, tmp_path / "weights.pth")
    line = ["config.py", "images", "--checkpoint", "weights.pth", "--size", 32, 48]
    run = Run(TOOL, [*line, "--out", "out"], tmp_path).succeeded()
    again = Run(TOOL, [*line, "--out", "out"], tmp_path)

    out = tmp_path / "out"
    pictures = {"kv_buffer.png", "output.png"}
    files = {path.name for path in out.iterdir()}
    assert files == pictures | {"attention.csv", "ranks.csv", "rank.json"}
    written = json.loads((out / "rank.json").read_text())
    assert (written["size"], written["images"]) == ([32, 48], 2)
    # The config normalises as for ImageNet, as does a backbone given by name.
    subject = load_subject("ravlt_test:" + ",".join(ATTENTION), (32, 48), None)
    subject.backbone.load_state_dict(
        {key.removeprefix("backbone."): value for key, value in weights.items()}
    )
    found = study(subject, find_images(str(images)), (32, 48))
    assert_rows_close(written["ranks"], found.ranks)
    assert_rows_close(written["attention"], found.attention)
    for name, rows in (("ranks", found.ranks), ("attention", found.attention)):
        with open(out / f"{name}.csv") as file:
            table = list(csv.DictReader(file))
        assert [row["layer"] for row in table] == [row["layer"] for row in rows]
        assert [row["head"] for row in table] == [str(row["head"]) for row in rows]
    assert "| layers.0.blocks.0.attn | rala | yes |" in run.out
    for name in pictures:
        with Image.open(out / name) as picture:
            pixels = np.asarray(picture.convert("RGB")).astype(int)
        assert pixels.min() < 60
        assert np.ptp(pixels, axis=-1).max() == 0  # no colour
    assert again.error() == "error: --out 'out' exists; name a new folder."


def assert_rows_close(found: list[dict], expected: list[dict]) -> None:
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        assert a.keys() == b.keys()
        for key in a:
            if isinstance(b[key], float | list):
                assert a[key] == pytest.approx(b[key], rel=1e-3, abs=1e-5), key
            else:
                assert a[key] == b[key]


def test_results_of_a_study(images):
    torch.manual_seed(0)
    subject = load_subject("ravlt_test:linear", (32, 48), None)
    found = study(subject, find_images(str(images)), (32, 48))
    assert {row["alpha"] for row in found.ranks + found.attention} == {None}
    for row in found.ranks:
        assert 1 <= row["effective_rank"] <= row["full_rank"] == len(row["spectrum"])
        assert 1 <= row["rank_0.01"] <= row["rank_0.001"] <= row["rank_0.0001"]
        assert row["spectrum"][0] == 1
    sizes = {"8x12", "16x24", "32x48", "64x96"}
    assert {row["size"] for row in found.attention} == sizes
    for row in found.attention:
        for key in ("row_sum", "row_sum_min", "row_sum_max"):
            assert row[key] == pytest.approx(1, abs=1e-4)
        assert 0 <= row["entropy"] <= row["entropy_of_uniform"] + 1e-5
    all_heads = [row for row in found.attention if row["head"] == "all"]
    assert all_heads[0]["tokens"] == 2 * 3  # of the first stage, at 8 x 12


@pytest.mark.parametrize("name", CORES)
def test_every_mechanism_can_be_studied(name, images):
    torch.manual_seed(0)
    subject = load_subject(f"ravlt_test:{name}", (32, 32), None)
    found = study(subject, find_images(str(images))[:1], (32, 32))
    all_heads = [row for row in found.ranks if row["head"] == "all"]
    forms = 2 if name == "rala" else 1  # with and without alpha
    buffers = hasattr(subject.backbone.layers[0].blocks[0].attn.core, "kv_buffer")
    assert len(all_heads) == 5 * forms * (4 + buffers)
    for row in found.ranks:
        assert row["attention"] == name
        assert row["effective_rank"] <= row["full_rank"] + 1e-9
    for row in found.attention:
        assert -1e-6 <= row["entropy"] <= row["entropy_of_uniform"] + 1e-5


def test_large_grids_have_row_sums_without_entropy(images, monkeypatch):
    subject = load_subject("ravlt_test:rala", (32, 48), None)
    everything = study(subject, find_images(str(images)), (32, 48)).attention
    monkeypatch.setattr("ravlt.analysis.attention.rank_study.DENSE_TOKENS", 95)
    limited = study(subject, find_images(str(images)), (32, 48)).attention
    assert {row["tokens"] for row in limited if row["entropy"] is None} == {96, 384}
    assert_rows_close(
        [row | {"entropy": None} for row in limited],
        [row | {"entropy": None} for row in everything],
    )


def test_error_messages(tmp_path, images):
    with pytest.raises(RAVLTError, match="has no image"):
        find_images(str(ROOT / "tools"))
    with pytest.raises(RAVLTError, match="'resnet18' is FeatureListNet, not RAVLT"):
        load_subject("resnet18", (32, 32), None)
    with pytest.raises(RAVLTError, match="does not exist"):
        load_subject("ravlt_test", (32, 32), str(tmp_path / "none.pth"))
    broken = images / "a.png"
    broken.write_bytes(b"not an image")
    with pytest.raises(RAVLTError, match="a.png' cannot be read as an image"):
        study(load_subject("ravlt_test", (32, 32), None), [broken], (32, 32))
