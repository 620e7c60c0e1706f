"""Files of the released layout, for every released row, give the released network."""

import copy
import math
import subprocess
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
import yaml
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from released_layout import SIZES, backbone, released_shapes
from torch import nn

from helpers.backbones import skip_initialization
from helpers.paper_configs import flat_tensors, load, make_inputs, paths_of, shrunken
from helpers.tool_runs import ROOT, Run
from ravlt.errors import RAVLTError
from ravlt.models.archs import ARCHS
from ravlt.weights.checkpoint import read_checkpoint
from ravlt.weights.convert import convert_released

# Rows of the paper, by the metafiles: what has weights.
RELEASED = {
    ROOT / entry["Config"]
    for path in ROOT.glob("configs/*/metafile.yml")
    for entry in yaml.safe_load(path.read_text())["Models"]
    if "Weights" in entry and "Config" in entry
}
released = pytest.mark.parametrize(
    "case", sorted(RELEASED), indirect=True, ids=lambda path: path.stem
)
(RETINANET,) = paths_of("retinanet_ravlt-t_fpn")
(SEM_FPN,) = [path for path in paths_of("fpn_ravlt-t_8xb2") if path.stem[0] == "f"]


def small_config(cfg: Config) -> Config:
    cfg = copy.deepcopy(cfg)
    cfg.model = shrunken(cfg.model)
    return cfg


def released_network(model_cfg) -> nn.Module:
    """What the authors trained: four output norms, even where one is not used."""
    cfg = copy.deepcopy(model_cfg)
    if cfg.type == "RetinaNet":
        cfg.backbone.out_indices = (0, 1, 2, 3)
        cfg.neck.update(in_channels=list(ARCHS["test"]["embed_dims"]), start_level=1)
    torch.manual_seed(5)
    model = MODELS.build(cfg)
    model.init_weights()
    for name, value in model.state_dict().items():
        if value.is_floating_point() and not name.endswith("angle"):
            noise = torch.randn_like(value) * 0.02
            value.add_(noise.abs() if name.endswith("running_var") else noise)
    return model.eval()


def save_released(model: nn.Module, path: Path, seg: bool) -> dict:
    """As MMDetection 2 and MMSegmentation 0 wrote: plain names, capital letters."""
    state = OrderedDict((k, v.clone()) for k, v in model.state_dict().items())
    meta = dict(
        CLASSES=tuple("abc"),
        mmdet_version="2.11.0",
        config="model = dict()\n",
        epoch=12,
    )
    if seg:
        meta["PALETTE"] = [[1, 2, 3]] * 3
    file = dict(meta=meta, state_dict=state, optimizer=dict(state={}, param_groups=[]))
    torch.save(file, path)
    return state


def test_the_rows_are_all_there():
    assert len(RELEASED) == 21


@pytest.mark.parametrize("size", SIZES)
def test_the_layout_is_as_large_as_the_released_backbones(size):
    """attention_specs 1.5, with four output norms in place of the classifier's tail."""
    shapes = backbone(size)
    floats = {
        name: math.prod(shape)
        for name, shape in shapes.items()
        if not name.endswith(("running_mean", "running_var", "tracked", "angle"))
    }
    params, tensors = dict(
        t=(13_345_408, 302),
        s=(24_038_848, 462),
        b=(46_688_928, 622),
        l=(93_559_008, 822),
    )[size]
    assert sum(floats.values()) == params + 2 * sum(SIZES[size][0])
    assert len(shapes) == tensors - 9 + 8


@pytest.mark.integration
@released
def test_every_tensor_of_a_real_file_arrives(case, tmp_path, monkeypatch):
    """Files of full size, under names that were not taken from our models."""
    skip_initialization(monkeypatch)
    tensors = {}
    for i, (name, shape) in enumerate(
        released_shapes(case.name["method"], case.name["size"]).items()
    ):
        if name.endswith("angle"):
            tensors[name] = 1e-4 ** torch.linspace(0, 1, shape[0] // 2)
            tensors[name] = tensors[name].repeat_interleave(2)
        else:  # one number takes the room of one, however often it is repeated
            kind = torch.int64 if name.endswith("tracked") else torch.float32
            tensors[name] = torch.tensor(i, dtype=kind).expand(shape)
    torch.save(dict(meta=dict(), state_dict=tensors), tmp_path / "released.pth")

    state = convert_released(case.cfg, str(tmp_path / "released.pth"))["state_dict"]
    unused = {n for n in tensors if n.startswith("backbone.extra_norms.0.")}
    unused = unused if case.name["method"] == "retinanet" else set()
    assert state.keys() == tensors.keys() - unused
    for name, value in state.items():
        assert torch.allclose(value, tensors[name]), name


@pytest.mark.integration
@released
def test_conversion(case, tmp_path):
    cfg, seg = small_config(case.cfg), case.name["dataset"] == "ade20k"
    theirs = released_network(cfg.model)
    state = save_released(theirs, tmp_path / "released.pth", seg)
    assert {f"backbone.extra_norms.{i}.norm.weight" for i in range(4)} <= state.keys()

    checkpoint = convert_released(cfg, str(tmp_path / "released.pth"))
    assert checkpoint["meta"]["dataset_meta"]["classes"] == tuple("abc")
    if seg:
        assert checkpoint["meta"]["dataset_meta"]["palette"] == [[1, 2, 3]] * 3
    else:  # the file has none: the data set's
        assert len(checkpoint["meta"]["dataset_meta"]["palette"]) == 80
    assert Config.fromstring(checkpoint["meta"]["cfg"], ".py").model == cfg.model
    metadata = checkpoint["state_dict"]._metadata["backbone"]
    assert metadata["attn_types"] == ("rala", "rala", "softmax", "softmax")

    ours = MODELS.build(cfg.model).eval()
    ours.load_state_dict(checkpoint["state_dict"])  # strictly
    batch = ours.data_preprocessor(make_inputs(case.name["dataset"]), training=False)
    with torch.no_grad():
        outs, expected = (
            flat_tensors(model(**copy.deepcopy(batch), mode="tensor"))
            for model in (ours, theirs)
        )
    assert len(outs) == len(expected) > 0
    for out, wanted in zip(outs, expected, strict=True):
        assert torch.equal(out, wanted)
        assert out.isfinite().all()


@pytest.fixture
def retinanet_file(tmp_path) -> tuple[Config, Path]:
    cfg = small_config(load(RETINANET))
    path = tmp_path / "released.pth"
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        save_released(released_network(cfg.model), path, seg=False)
    return cfg, path


@pytest.mark.integration
def test_files_that_do_not_fit(retinanet_file, tmp_path):
    cfg, path = retinanet_file
    other = small_config(load(SEM_FPN))
    with pytest.raises(RAVLTError, match=r"released.pth' does not fit .* it lacks"):
        convert_released(other, str(path))
    file = torch.load(path)
    file["state_dict"]["bbox_head.extra"] = torch.zeros(1)
    torch.save(file, path)
    with pytest.raises(RAVLTError, match="also has 1 keys, first bbox_head.extra"):
        convert_released(cfg, str(path))
    del file["state_dict"]["bbox_head.extra"]
    angle = "backbone.layers.0.RoPE.angle"
    file["state_dict"][angle] = 3
    torch.save(file, path)
    with pytest.raises(RAVLTError, match=f"has no tensor for 1 keys, first {angle}"):
        convert_released(cfg, str(path))
    file["state_dict"][angle] = torch.zeros(9)
    torch.save(file, path)
    with pytest.raises(RAVLTError, match="another shape for 1 keys"):
        convert_released(cfg, str(path))
    torch.save({"state_dict": {**file["state_dict"], 0: torch.zeros(1)}}, path)
    with pytest.raises(RAVLTError, match=r"released\.pth' has a key of type int where"):
        convert_released(cfg, str(path))
    torch.save(file["state_dict"], path)
    with pytest.raises(RAVLTError, match="has no state_dict"):
        convert_released(cfg, str(path))
    host = copy.deepcopy(cfg)
    host.model.backbone = dict(type="ResNet", depth=18, out_indices=(1, 2, 3))
    torch.save(file, path)
    with pytest.raises(RAVLTError, match="is ResNet, not RAVLT"):
        convert_released(host, str(path))


def tool(name: str, *args, cwd: Path) -> Run:
    return Run(f"model_converters/{name}", [*args], cwd)


@pytest.mark.integration
def test_commands(retinanet_file, tmp_path):
    """Converted, then published: the bytes' digest is in the name, weights are kept."""
    cfg, path = retinanet_file
    cfg.dump(tmp_path / "small.py")
    line = ("ravlt_to_mm.py", "small.py", "released.pth", "converted.pth")
    run = tool(*line, cwd=tmp_path).succeeded()
    converted = read_checkpoint(tmp_path / "converted.pth")
    assert f"{len(converted['state_dict'])} tensors" in run.out
    assert "'converted.pth' exists" in tool(*line, cwd=tmp_path).error()

    training = converted | dict(optimizer={}, ema_state_dict={}, message_hub={})
    torch.save(training, tmp_path / "epoch_12.pth")
    run = tool("publish_model.py", "epoch_12.pth", "model.pth", cwd=tmp_path)
    run.succeeded()
    assert "ema_state_dict, message_hub, optimizer" in run.err
    name = run.out.strip()
    digest = subprocess.run(
        ["sha256sum", name], cwd=tmp_path, capture_output=True, text=True, check=True
    ).stdout
    assert name == f"model-{digest[:8]}.pth"
    published = read_checkpoint(tmp_path / name)
    assert published.keys() == {"meta", "state_dict"}
    assert published["meta"] == converted["meta"]
    for key, value in converted["state_dict"].items():
        assert torch.equal(published["state_dict"][key], value)
    metadata = published["state_dict"]._metadata["backbone"]
    assert metadata["attn_types"] == ("rala", "rala", "softmax", "softmax")
    assert tool("publish_model.py", "small.py", "x.pth", cwd=tmp_path).error()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"state_dict": {0: torch.ones(1)}}, "has a key of type int where"),
        ({"state_dict": {}, 0: 1}, "has a key of type int where"),
        ({"state_dict": [1]}, "has no state_dict"),
    ],
)
def test_publishing_refuses_what_holds_no_weights(tmp_path, content, message):
    torch.save(content, tmp_path / "a.pth")
    line = ["a.pth", "out.pth"]
    error = Run("model_converters/publish_model.py", line, tmp_path).error()
    assert error.startswith(f"error: Checkpoint 'a.pth' {message}")
    assert not list(tmp_path.glob("out*"))
