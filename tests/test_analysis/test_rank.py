"""Rank analysis against closed formulas, float64 twins, and one run of its command."""

import csv
import json
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from mmengine.model import BaseModel
from mmengine.runner import Runner
from PIL import Image
from running import ROOT, SEG, Run
from torch import Tensor, nn

from ravlt.analysis.logs import read_logs
from ravlt.analysis.rank import (
    Call,
    Matrix,
    attention_rows,
    effective_rank,
    kv_spectra,
    layer_ranks,
    numerical_rank,
    output_spectra,
    row_sums,
    singular_values,
    watch,
)
from ravlt.analysis.rank_study import find_images, load_subject, study
from ravlt.errors import RAVLTError
from ravlt.models import RAVLT
from ravlt.models.attention import CORES, Attention, build_core

# ------------------------------------------------------------------------ formulas


def draw(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def with_spectrum(values: Tensor, rows: int, columns: int) -> Tensor:
    """A matrix of random orthogonal directions."""
    left, right = (
        torch.linalg.qr(draw(n, len(values), seed=n)).Q for n in (rows, columns)
    )
    return left @ values.diag() @ right.T


@pytest.mark.parametrize(("rows", "columns"), [(50, 6), (6, 50), (6, 6)])
def test_known_spectra_are_found(rows, columns):
    values = torch.tensor([3, 1, 0.5, 1e-3, 1e-9, 0], dtype=torch.float64)
    matrices = torch.stack([with_spectrum(values, rows, columns)] * 2)
    matrices[1] *= 7
    expected = torch.stack((values, 7 * values))
    torch.testing.assert_close(
        singular_values(matrices), expected, rtol=1e-10, atol=1e-14
    )


def test_a_matrix_that_is_not_finite_has_no_spectrum_and_stops_nothing():
    x = draw(3, 4, 4)
    x[0, 1, 2], x[2, 0, 0] = torch.nan, torch.inf
    found = singular_values(x)
    assert found.isnan().all(-1).tolist() == [True, False, True]
    assert effective_rank(found).isnan().tolist() == [True, False, True]
    torch.testing.assert_close(found[1], torch.linalg.svdvals(x[1]))


def test_effective_rank_by_hand():
    def of(*values: float) -> float:
        return effective_rank(torch.tensor(values, dtype=torch.float64)).item()

    assert of(5, 5, 5, 0) == pytest.approx(3)
    assert of(4, 0, 0, 0) == 1
    assert of(0, 0, 0, 0) == 0
    assert of(3, 1) == pytest.approx(4 / 3**0.75)  # (3/4)^(-3/4) (1/4)^(-1/4)
    # 1, 1/2, 1/4 ...: p_i = 2^-i has an entropy of log 4.
    assert of(*(0.5**i for i in range(60))) == pytest.approx(4)


def test_numerical_rank_by_hand():
    values = torch.tensor([[100, 10, 1.5, 0.05], [0, 0, 0, 0], [2, 2, 2, 0]])
    assert numerical_rank(values, 1e-2).tolist() == [3, 0, 3]
    assert numerical_rank(values, 0.1).tolist() == [1, 0, 3]
    assert numerical_rank(values, 1e-4).tolist() == [4, 0, 3]
    low = draw(40, 5, seed=1) @ draw(5, 30, seed=2)
    assert numerical_rank(singular_values(low), 1e-9) == 5


# --------------------------------------------------------------------------- twins

HW = (3, 4)
HEADS, D = 2, 16  # of stage 2 of the arch 'test'


def phi(x: Tensor) -> Tensor:
    return torch.where(x > 0, x + 1, x.exp())


def places() -> tuple[Tensor, Tensor]:
    """Row and column of every token."""
    tokens = torch.arange(math.prod(HW), dtype=torch.float64)
    return tokens // HW[1], tokens % HW[1]


def turn(x: Tensor) -> Tensor:
    """Rotates (heads, N, d) by rows in its first half, by columns in its second."""
    row, column = places()
    m = torch.arange(D // 4, dtype=torch.float64)
    theta = 10000 ** (-m / (D // 4 - 1))
    angles = torch.cat((row[:, None] * theta, column[:, None] * theta), dim=-1)
    pairs = torch.view_as_complex(x.unflatten(-1, (-1, 2)).contiguous())
    turned = pairs * torch.polar(torch.ones_like(angles), angles)
    return torch.view_as_real(turned).flatten(-2)


@pytest.fixture(scope="module")
def rala() -> tuple[Call, dict[str, Tensor]]:
    """The second stage of a network in float64: what is seen, and its twin."""
    torch.manual_seed(0)
    model = RAVLT("test", out_indices=(1,), tile=0).double().eval()
    layer = model.layers[1].blocks[0].attn
    for part in (layer.qkvo, layer.lepe):
        part.weight.data *= 40  # so that alpha is far from 1
        part.bias.data += draw(*part.bias.shape)
    seen = {}
    handle = layer.register_forward_pre_hook(lambda _, x: seen.update(x=x[0]))
    with watch(model, lambda name, call: seen.update({name: call})), torch.no_grad():
        model(draw(1, 3, 8 * HW[0], 8 * HW[1]))
    handle.remove()
    assert set(seen) == {"x", "layers.0.blocks.0.attn", "layers.1.blocks.0.attn"}
    assert not any(m._forward_hooks for m in model.modules())
    with torch.no_grad():
        return seen["layers.1.blocks.0.attn"], twin(layer, seen["x"][0])


def twin(layer: Attention, x: Tensor) -> dict[str, Tensor]:
    """What the layer computes for one image, head by head, from its weights."""

    def heads(t: Tensor) -> Tensor:
        return t.reshape(-1, HEADS, D).permute(1, 0, 2)

    weight = layer.qkvo.weight[:, :, 0, 0]
    q, k, v, gate = (x.flatten(0, 1) @ weight.T + layer.qkvo.bias).chunk(4, dim=-1)
    image = v.T.reshape(1, -1, *HW)
    lepe = F.conv2d(image, layer.lepe.weight, layer.lepe.bias, 1, 2, 1, HEADS * D)
    q, k, v, gate, lepe = map(heads, (phi(q), phi(k), v, gate, lepe[0].flatten(1).T))
    logits = k @ q.mean(1)[:, :, None] / math.sqrt(D)
    out = dict(gate=gate, lepe=lepe)
    for alpha, weights in (
        (True, logits.softmax(1)),
        (False, 1 / len(x.flatten(0, 1))),
    ):
        share = k * weights
        denominator = (q * share.sum(1, keepdim=True)).sum(-1, keepdim=True) + 1e-6
        out["kv", alpha] = turn(share).transpose(1, 2) @ v
        out["dense", alpha] = turn(q) @ turn(share).transpose(1, 2) / denominator
        out["core", alpha] = out["dense", alpha] @ v
    return out


def spectra(matrices: Tensor) -> Tensor:
    return torch.from_numpy(np.linalg.svd(matrices.numpy(), compute_uv=False))


def assert_equal(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


def test_kv_buffers_equal_the_twin(rala):
    call, expected = rala
    found = kv_spectra(call)
    assert set(found) == {Matrix("kv", True), Matrix("kv", False)}
    for matrix, values in found.items():
        buffers = expected["kv", matrix.alpha]
        assert_equal(values.heads[0], spectra(buffers))
        assert_equal(values.whole[0], spectra(torch.block_diag(*buffers)))
    with_alpha, without = (found[Matrix("kv", a)].whole for a in (True, False))
    assert (with_alpha / without - 1).abs().max() > 0.1


def test_outputs_equal_the_twin(rala):
    call, expected = rala
    found = output_spectra(call)
    assert len(found) == 8
    for (kind, alpha, lepe, gate), values in found.items():
        assert kind == "output"
        y = expected["core", alpha] + expected["lepe"] * lepe
        y = y * expected["gate"] if gate else y
        assert_equal(values.heads[0], spectra(y))
        assert_equal(values.whole[0], spectra(torch.cat(tuple(y), dim=-1)))


def test_rows_equal_the_twin(rala):
    call, expected = rala
    found, sums = attention_rows(call), row_sums(call)
    assert set(found) == set(sums) == {True, False}
    for alpha, rows in found.items():
        weights = expected["dense", alpha]
        assert_equal(rows.sums[0], weights.sum(-1))
        assert_equal(sums[alpha], rows.sums)
        size = weights.abs()
        share = size / size.sum(-1, keepdim=True)
        assert_equal(rows.entropy[0], -(share * share.log()).sum(-1))
    assert (found[True].entropy < math.log(len(weights[0]))).all()


@pytest.mark.parametrize("name", ["linear", "norm", "cosformer"])
def test_buffers_of_other_mechanisms(name):
    q, k, v = (draw(1, HEADS, 12, D, seed=i) for i in range(3))
    features = phi(k)
    if name == "cosformer":
        r, c = (x * math.pi / 2 / n for x, n in zip(places(), HW, strict=True))
        waves = [a * b for a in (r.cos(), r.sin()) for b in (c.cos(), c.sin())]
        features = torch.cat([k.relu() * w[:, None] for w in waves], dim=-1)
    found = build_core(name, HEADS * D, HEADS).kv_buffer(q, k, v, HW)
    # Whatever the order of the features.
    expected = torch.einsum("bhnf,bhnd->bhfd", features, v) / 12
    assert found.shape == expected.shape
    assert_equal(spectra(found), spectra(expected))


def test_under_autocast():
    """Layers then compute in half precision; ranks of what they give do not."""
    torch.manual_seed(0)
    model = RAVLT("test")
    ranks = {False: {}, True: {}}
    for enabled in ranks:

        def visit(name: str, call: Call, enabled=enabled) -> None:
            ranks[enabled][name] = layer_ranks(call)

        with watch(model, visit), torch.autocast("cpu", torch.bfloat16, enabled):
            model(draw(2, 3, 64, 96).float())
    assert len(ranks[True]) == 5
    for name, expected in ranks[False].items():
        assert ranks[True][name] == pytest.approx(expected, rel=0.02)


def by_hand(name: str, tokens: tuple[int, int], d: int) -> Call:
    """A call on Gaussian queries, keys, values and gate of one head."""
    layer = Attention(d, 1, name)
    q, k, v, gate = (draw(1, 1, math.prod(tokens), d, seed=i) for i in range(4))
    mixed = layer.core(q, k, v, tokens)
    return Call(layer, (q, k, v, tokens), mixed, torch.zeros_like(v), gate)


def test_mechanisms_without_alpha_or_buffer():
    assert kv_spectra(by_hand("softmax", (2, 3), 8)) == {}
    assert row_sums(by_hand("softmax", (2, 3), 8)) == {}
    call = by_hand("linear", (2, 3), 8)
    assert set(kv_spectra(call)) == {Matrix("kv", None)}
    assert {matrix.alpha for matrix in output_spectra(call)} == {None}
    assert row_sums(call)[None].flatten().tolist() == pytest.approx([1] * 6, abs=1e-5)


def test_what_docs_rank_says_of_gaussian_inputs():
    """The gate lifts the output's rank; alpha does not lift the buffer's."""
    call = by_hand("rala", (14, 14), 64)
    buffers, outputs = kv_spectra(call), output_spectra(call)
    kv = {a: effective_rank(buffers[Matrix("kv", a)].whole).item() for a in (1, 0)}
    values = [outputs[Matrix("output", True, False, g)].whole for g in (False, True)]
    assert kv[1] < kv[0] - 3
    plain, gated = (effective_rank(v).item() for v in values)
    assert plain < 10 < 40 < gated
    plain, gated = (numerical_rank(v, 1e-2).item() for v in values)
    assert plain < 32 < gated == 64
    entropy = {a: rows.entropy.mean() for a, rows in attention_rows(call).items()}
    assert entropy[True] < entropy[False]


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
        # Rates of 0: every iteration computes the same.
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
    logs = {k: v for k, v in read_logs(str(tmp_path)).items() if "rank" in k}
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
        values = dict(logs[f"rank_output/{layer}"])
        assert values == pytest.approx(dict.fromkeys((2, 3, 4, 5), expected), rel=1e-4)
        scalar = runner.message_hub.get_scalar(f"train/rank_output/{layer}")
        assert len(scalar.data[0]) == 2  # iterations 2 and 4
    assert not any(m._forward_hooks for m in model.modules())
    for layer, full in zip(rala, (16, 32), strict=True):
        assert 1 <= logs[f"rank_kv/{layer}"][0][1] <= full


def test_hook_without_anything_to_measure(tmp_path):
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


def test_command(tmp_path, images):
    (tmp_path / "config.py").write_text(CONFIG)
    torch.manual_seed(5)
    weights = RAVLT("test", ATTENTION).state_dict()
    for key in weights:
        if "qkvo.weight" in key:
            weights[key] *= 5  # not what random weights would be
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
    # The config's preprocessing is ImageNet's, as a backbone's by name.
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
    whole = [row for row in found.attention if row["head"] == "all"]
    assert whole[0]["tokens"] == 2 * 3  # of the first stage, at 8 x 12


@pytest.mark.parametrize("name", CORES)
def test_every_mechanism_can_be_studied(name, images):
    torch.manual_seed(0)
    subject = load_subject(f"ravlt_test:{name}", (32, 32), None)
    found = study(subject, find_images(str(images))[:1], (32, 32))
    whole = [row for row in found.ranks if row["head"] == "all"]
    forms = 2 if name == "rala" else 1  # with and without alpha
    buffers = hasattr(subject.backbone.layers[0].blocks[0].attn.core, "kv_buffer")
    assert len(whole) == 5 * forms * (4 + buffers)
    for row in found.ranks:
        assert row["attention"] == name
        assert row["effective_rank"] <= row["full_rank"] + 1e-9
    for row in found.attention:
        assert -1e-6 <= row["entropy"] <= row["entropy_of_uniform"] + 1e-5


def test_row_sums_go_on_where_explicit_matrices_stop(images, monkeypatch):
    subject = load_subject("ravlt_test:rala", (32, 48), None)
    everything = study(subject, find_images(str(images)), (32, 48)).attention
    monkeypatch.setattr("ravlt.analysis.rank_study.DENSE_TOKENS", 95)
    limited = study(subject, find_images(str(images)), (32, 48)).attention
    assert {row["tokens"] for row in limited if row["entropy"] is None} == {96, 384}
    assert_rows_close(
        [row | {"entropy": None} for row in limited],
        [row | {"entropy": None} for row in everything],
    )


def test_errors_say_what_to_do(tmp_path, images):
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
