"""Loading checkpoints of every origin, and the errors for those that do not fit."""

import argparse
import collections
import os
import pickle

import numpy as np
import pytest
import torch
from mmengine.logging.history_buffer import HistoryBuffer
from mmengine.model import PretrainedInit
from mmengine.registry import MODELS
from mmengine.runner import load_checkpoint
from mmengine.runner.checkpoint import CheckpointLoader
from torch import nn

import ravlt
from helpers.hostile_checkpoints import Call
from ravlt.errors import RAVLTError
from ravlt.models.attention import CORES
from ravlt.weights import checkpoint
from ravlt.weights.checkpoint import read_checkpoint, use_safe_loading


@pytest.fixture
def log(monkeypatch) -> list[str]:
    """The messages that loading logs."""
    lines = []
    for module in ("weights.checkpoint", "models.archs"):
        monkeypatch.setattr(
            f"ravlt.{module}.print_log", lambda message, **_: lines.append(message)
        )
    return lines


TAIL = {
    "proj.weight": (1024, 64, 1, 1),
    "proj.bias": (1024,),
    "norm.weight": (1024,),
    "norm.bias": (1024,),
    "norm.running_mean": (1024,),
    "norm.running_var": (1024,),
    "norm.num_batches_tracked": (),
    "head.weight": (1000, 1024, 1, 1),
    "head.bias": (1000,),
}


def source(seed: int = 7, **kwargs) -> ravlt.RAVLT:
    torch.manual_seed(seed)
    model = ravlt.RAVLT("test", **kwargs)
    for parameter in model.parameters():  # so that no value equals its initial one
        nn.init.normal_(parameter)
    return model


def imagenet_state(model: ravlt.RAVLT) -> dict:
    state = {
        k: v for k, v in model.state_dict().items() if not k.startswith("extra_norms")
    }
    return state | {key: torch.randn(shape) for key, shape in TAIL.items()}


def detector_state(model: ravlt.RAVLT) -> dict:
    state = {f"backbone.{k}": v for k, v in model.state_dict().items()}
    return state | {"neck.lateral.weight": torch.ones(3), "rpn_head.x": torch.ones(1)}


def load(path, **kwargs) -> ravlt.RAVLT:
    torch.manual_seed(0)
    init_cfg = dict(type="Pretrained", checkpoint=str(path)) | kwargs.pop("init", {})
    model = MODELS.build(dict(type="RAVLT", arch="test", init_cfg=init_cfg, **kwargs))
    model.init_weights()
    return model


def assert_same(model: nn.Module, expected: dict, but: str = "?") -> None:
    for name, value in model.state_dict().items():
        if not name.startswith(but):
            torch.testing.assert_close(value, expected[name], msg=name)


def test_the_class_of_pretrained_weights_loads_strictly(tmp_path):
    """As a config in pure Python names it."""
    torch.save({"state_dict": {"a": torch.zeros(1)}}, tmp_path / "other.pth")
    with pytest.raises(RAVLTError, match=r"other\.pth"):
        load(tmp_path / "other.pth", init=dict(type=PretrainedInit))


@pytest.mark.parametrize(
    "wrap",
    [
        lambda s: s,
        lambda s: {"state_dict": s, "meta": {"epoch": 1}},
        lambda s: {"model": s, "epoch": 300, "max_accuracy": 84.4},
        lambda s: {"model_ema": s},
        lambda s: {f"module.{k}": v for k, v in s.items()},
    ],
    ids=["bare", "state_dict", "model", "model_ema", "module."],
)
def test_imagenet_files(tmp_path, wrap, log):
    origin = source()
    torch.save(wrap(imagenet_state(origin)), tmp_path / "in1k.pth")
    model = load(tmp_path / "in1k.pth")
    assert_same(model, origin.state_dict(), but="extra_norms")
    for norm in model.extra_norms.values():
        assert norm.norm.weight.eq(1).all()
    total = len(origin.state_dict())
    out = log[0]
    assert f"Loaded {total - 8} tensors from" in out
    assert "missing 8 " in out
    assert "unexpected 9." in out


@pytest.mark.parametrize("prefix", [None, "backbone", "backbone."])
def test_a_detector_gives_its_backbone(tmp_path, prefix):
    origin = source()
    torch.save({"state_dict": detector_state(origin), "meta": {}}, tmp_path / "d.pth")
    model = load(tmp_path / "d.pth", init=dict(prefix=prefix) if prefix else {})
    assert_same(model, origin.state_dict())


def test_one_backbone_of_two(tmp_path):
    """A file has a student and its teacher; only the prefix tells them apart."""
    models = {"student": source(), "teacher": source(seed=8)}
    state = {
        f"{name}.backbone.{key}": value
        for name, model in models.items()
        for key, value in model.state_dict().items()
    }
    torch.save(state, tmp_path / "two.pth")
    model = load(tmp_path / "two.pth", init=dict(prefix="teacher.backbone"))
    assert_same(model, models["teacher"].state_dict())


def test_our_own_file_and_a_second_init(tmp_path):
    origin = source()
    torch.save(origin.state_dict(), tmp_path / "own.pth")
    model = load(tmp_path / "own.pth")
    assert_same(model, origin.state_dict())
    nn.init.zeros_(model.layers[0].blocks[0].attn.proj.weight)
    model.init_weights()  # mmengine may call it twice; only the first one loads
    assert not model.layers[0].blocks[0].attn.proj.weight.any()


def test_other_initialisation_comes_before_the_file(tmp_path):
    origin = source()
    torch.save(imagenet_state(origin), tmp_path / "in1k.pth")
    model = MODELS.build(
        dict(
            type="RAVLT",
            arch="test",
            init_cfg=[
                dict(type="Constant", layer="LayerNorm", val=3.0),
                dict(type="Pretrained", checkpoint=str(tmp_path / "in1k.pth")),
            ],
        )
    )
    model.init_weights()
    assert_same(model, origin.state_dict(), but="extra_norms")
    assert model.extra_norms["2"].norm.weight.eq(3).all()


@pytest.mark.parametrize("name", CORES)
def test_released_files_fit_every_attention(tmp_path, log, name):
    """Parameters of the core keep their initial values; the rest come from the file."""
    origin = source()
    torch.save(imagenet_state(origin), tmp_path / "in1k.pth")
    model = load(tmp_path / "in1k.pth", attn_types=name)
    added = {k for k in model.state_dict() if ".attn.core." in k}
    adding = ("focused", "fixation", "hedgehog", "gla", "chela")
    assert bool(added) == (name in adding)
    fresh = ravlt.RAVLT("test", attn_types=name).state_dict()
    for key, value in model.state_dict().items():
        if key.startswith("extra_norms"):
            continue
        if key not in added:
            torch.testing.assert_close(value, origin.state_dict()[key], msg=key)
        elif "weight" not in key or name == "hedgehog":  # not random
            torch.testing.assert_close(value, fresh[key], msg=key)
    assert f"missing {8 + len(added)} " in log[0]


def test_fewer_outputs_take_a_full_file(tmp_path):
    origin = source()
    torch.save(origin.state_dict(), tmp_path / "own.pth")
    model = load(tmp_path / "own.pth", out_indices=(1, 2))
    assert len(model.layers) == 3
    assert_same(model, origin.state_dict())


def test_attention_of_the_file(tmp_path, log):
    def warnings_of(file, **kwargs) -> list[str]:
        log.clear()
        load(tmp_path / file, **kwargs)
        return [line for line in log if "attn_types" in line]

    torch.save(imagenet_state(source()), tmp_path / "released.pth")
    detector = nn.ModuleDict({"backbone": source(attn_types="rala")})
    torch.save({"state_dict": detector.state_dict()}, tmp_path / "linear.pth")
    assert warnings_of("released.pth") == []
    assert warnings_of("linear.pth", attn_types="rala") == []
    (warning,) = warnings_of("released.pth", attn_types="rala")
    assert "trained with attn_types=('rala', 'rala', 'softmax', 'softmax')" in warning
    (warning,) = warnings_of("linear.pth")
    assert "trained with attn_types=('rala', 'rala', 'rala', 'rala')" in warning


PROJ = "layers.2.blocks.1.attn.proj.weight"


def with_metadata(state: dict, metadata) -> dict:
    """Return the state with the attribute that PyTorch keeps beside its tensors."""
    state = collections.OrderedDict(state)
    state._metadata = metadata
    return state


BROKEN = {
    "shape": (
        lambda s: {**s, PROJ: torch.ones(9, 9, 1, 1)},
        rf"{PROJ} of shape \(9, 9",
    ),
    "missing": (
        lambda s: {k: v for k, v in s.items() if k != PROJ},
        "missing 1 keys .*; the file is incomplete, so copy or download it again",
    ),
    "a missing stem": (
        lambda s: {k: v for k, v in s.items() if not k.startswith("patch_embed.")},
        "missing .*; the file is incomplete",
    ),
    "a smaller network": (
        lambda s: {k: v for k, v in s.items() if "layers.2.blocks.1." not in k},
        "missing .*; set arch to the size of the file's network",
    ),
    "unexpected": (lambda s: {**s, "layers.2.x": torch.ones(1)}, r"\(layers\.2\.x"),
    "half a tail": (
        lambda s: {k: v for k, v in s.items() if k != "head.bias"},
        r"missing 1 keys \(head\.bias",
    ),
    "another network": (lambda s: {"conv1.weight": torch.ones(1)}, "no key of RAVLT"),
    "no tensors": (lambda s: {"model": {"epoch": 3}}, "no dict of tensors"),
    "a list": (lambda s: [1, 2], "no dict of tensors"),
    "a key that is a number": (
        lambda s: {**s, 0: torch.ones(1)},
        "has a key of type int where tensor names belong; save model.state_dict",
    ),
    "only keys that are numbers": (lambda s: {0: torch.ones(1)}, "key of type int"),
    "keys that are bytes": (
        lambda s: {"model": {k.encode(): v for k, v in s.items()}},
        "has a key of type bytes where",
    ),
    "a key beside the state dict": (lambda s: {"model": s, None: 3}, "type NoneType"),
    "a value that is a number": (
        lambda s: {**s, PROJ: 3},
        f"{PROJ} of type int, but the model needs a tensor; save model.state_dict",
    ),
    "metadata": (lambda s: with_metadata(s, [1]), "has malformed metadata"),
    "metadata of a module": (lambda s: with_metadata(s, {"": 5}), "malformed"),
    "attention types": (
        lambda s: with_metadata(s, {"": {"attn_types": 3}}),
        "malformed metadata",
    ),
    "angle": (
        lambda s: {**s, "layers.1.RoPE.angle": s["layers.1.RoPE.angle"] * 1.01},
        r"layers\.1\.RoPE\.angle is not RAVLT's rotary table",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_files_that_do_not_fit(tmp_path, name):
    change, message = BROKEN[name]
    torch.save(change(imagenet_state(source())), tmp_path / "bad.pth")
    with pytest.raises(RAVLTError, match=message) as caught:
        load(tmp_path / "bad.pth")
    assert "\n" not in str(caught.value)
    if name != "angle":
        assert str(tmp_path / "bad.pth") in str(caught.value)


def test_missing_truncated_and_foreign_files(tmp_path):
    with pytest.raises(RAVLTError, match=r"none\.pth' does not exist"):
        load(tmp_path / "none.pth")
    torch.save(imagenet_state(source()), tmp_path / "full.pth")
    data = (tmp_path / "full.pth").read_bytes()
    for size in (0, 10, len(data) // 2, len(data) - 30):
        (tmp_path / "cut.pth").write_bytes(data[:size])
        with pytest.raises(RAVLTError, match=r"cut\.pth', which is truncated or not"):
            load(tmp_path / "cut.pth")


@pytest.mark.parametrize(
    ("head", "expected"),
    [
        ("<html>not found</html>", "is not a checkpoint but a web page, as a server"),
        ("\n <!DOCTYPE html>\n<html>", "is not a checkpoint but a web page,"),
        ('<?xml version="1.0"?><Error>', "is not a checkpoint but a web page,"),
        (
            "version https://git-lfs.github.com/spec/v1\noid sha256:12\nsize 3\n",
            "is not a checkpoint but a git-LFS pointer, which only names the file; "
            "fetch the file with git lfs pull, or download it.",
        ),
        ('{"error": "not found"}', "which is truncated or not a PyTorch file (Uns"),
        ("Entry not found", "which is truncated or not a PyTorch file ("),
    ],
)
@pytest.mark.parametrize("remote", [False, True])
def test_what_stands_in_place_of_a_file(tmp_path, monkeypatch, head, expected, remote):
    path = tmp_path / "page.pth"
    path.write_text(head)
    if remote:
        data = path.read_bytes()
        monkeypatch.setattr(checkpoint, "get_bytes", lambda _: data)
        path = "s3://bucket/page.pth"
    with pytest.raises(RAVLTError) as caught:
        load(path)
    assert f"'{path}'" in str(caught.value) and expected in str(caught.value)
    assert "\n" not in str(caught.value) and "weights_only" not in str(caught.value)


@pytest.mark.parametrize("legacy", [False, True])
def test_a_hostile_file_is_refused_and_nothing_runs(tmp_path, legacy):
    state = {
        "model": imagenet_state(source()),
        "args": Call(os.mkdir, str(tmp_path / "owned")),
    }
    torch.save(state, tmp_path / "evil.pth", _use_new_zipfile_serialization=not legacy)
    with pytest.raises(RAVLTError, match=r"Refused checkpoint .*evil\.pth.*mkdir"):
        load(tmp_path / "evil.pth")
    (tmp_path / "plain.pkl").write_bytes(
        pickle.dumps(Call(os.mkdir, str(tmp_path / "owned")))
    )
    with pytest.raises(RAVLTError, match=r"plain\.pkl"):
        load(tmp_path / "plain.pkl")
    assert not (tmp_path / "owned").exists()


def test_a_namespace_is_refused_with_advice(tmp_path):
    state = {"model": imagenet_state(source()), "args": argparse.Namespace(lr=1)}
    torch.save(state, tmp_path / "args.pth")
    with pytest.raises(RAVLTError, match=r"argparse\.Namespace.*save its state dict"):
        load(tmp_path / "args.pth")


def test_the_history_of_mmengine_is_accepted(tmp_path):
    history = HistoryBuffer([1.0, 2.0], [1, 1])
    history.update(np.float64(3.5))
    content = {
        "message_hub": {"log_scalars": collections.OrderedDict(loss=history)},
        "scalars": [np.float32(1.5), np.int64(7), np.bool_(True)],
        "array": np.arange(3, dtype=np.int16),
    }
    torch.save(content, tmp_path / "history.pth")
    found = read_checkpoint(tmp_path / "history.pth")
    values, counts = found["message_hub"]["log_scalars"]["loss"].data
    assert values.tolist() == [1.0, 2.0, 3.5]
    assert counts.tolist() == [1, 1, 1]
    assert found["scalars"] == [1.5, 7, True]
    assert found["array"].tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("owner", "name"), [(HistoryBuffer, "__init__"), (np.ndarray, "tofile")]
)
def test_nothing_else_is_reached_by_way_of_the_history(tmp_path, owner, name):
    torch.save({"x": Call(getattr, owner, name)}, tmp_path / "reach.pth")
    with pytest.raises(RAVLTError, match=r"Refused checkpoint .*reach\.pth"):
        read_checkpoint(tmp_path / "reach.pth")


def test_a_web_page_is_not_a_file():
    with pytest.raises(RAVLTError, match="replace /blob/ by /resolve/"):
        read_checkpoint("https://huggingface.co/aldjalkdf/RAVLT/blob/main/RAVLT_S.pth")


@pytest.mark.parametrize("name", ["nowhere.invalid", "127.0.0.1:9"])
def test_without_a_network_the_message_says_what_to_fetch(name, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    address = f"https://{name}/RAVLT_T.pth"
    with pytest.raises(RAVLTError) as caught:
        read_checkpoint(address)
    message = str(caught.value)
    assert "\n" not in message
    assert f"Cannot download '{address}'" in message
    assert "init_cfg.checkpoint=PATH" in message
    assert "init_cfg=None" in message


def test_mmengine_reads_through_us_when_asked(tmp_path, monkeypatch):
    schemes = collections.OrderedDict(CheckpointLoader._schemes)
    monkeypatch.setattr(CheckpointLoader, "_schemes", schemes)
    use_safe_loading()
    torch.save(
        {"state_dict": {}, "x": Call(os.mkdir, str(tmp_path / "owned"))},
        tmp_path / "e.pth",
    )
    with pytest.raises(RAVLTError, match=r"Refused checkpoint .*e\.pth"):
        load_checkpoint(source(), str(tmp_path / "e.pth"))
    assert not (tmp_path / "owned").exists()
    origin = source()
    torch.save({"state_dict": origin.state_dict()}, tmp_path / "good.pth")
    target = ravlt.RAVLT("test")
    load_checkpoint(target, str(tmp_path / "good.pth"), strict=True)
    assert_same(target, origin.state_dict())


@pytest.mark.parametrize("key", ["model", "model_ema"])
def test_mmengine_finds_weights_under_other_programs_names(tmp_path, monkeypatch, key):
    """Mmengine looks under state_dict alone, and loads nothing from other files."""
    schemes = collections.OrderedDict(CheckpointLoader._schemes)
    monkeypatch.setattr(CheckpointLoader, "_schemes", schemes)
    use_safe_loading()
    origin = source()
    torch.save({key: origin.state_dict(), "epoch": 3}, tmp_path / "other.pth")
    target = ravlt.RAVLT("test")
    content = load_checkpoint(target, str(tmp_path / "other.pth"), strict=True)
    assert_same(target, origin.state_dict())
    assert content.keys() == {"state_dict", "epoch"}
