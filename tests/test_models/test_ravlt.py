"""Construction of the backbone: sizes, keys, initial values, copies, errors."""

import copy
import io
import pickle

import pytest
import torch
from mmengine.config import ConfigDict
from torch import nn

import ravlt
from helpers.backbones import build, images
from ravlt.errors import RAVLTError
from ravlt.models.archs import ARCHS, resolve_arch
from ravlt.models.attention import CORES
from ravlt.models.ravlt import GatedAttention, build_attention
from ravlt.weights.checkpoint import read_checkpoint

# Released sizes: parameters without the classifier's tail, and parameters and tensors
# of whole classifiers.
PARAMS = {"t": 13_345_408, "s": 24_038_848, "b": 46_688_928, "l": 93_559_008}
CLS_PARAMS = {"t": 14_897_768, "s": 25_591_208, "b": 48_241_288, "l": 95_242_440}
CLS_TENSORS = {"t": 302, "s": 462, "b": 622, "l": 822}
TAIL_TENSORS, NORM_TENSORS = 9, 8


@pytest.mark.parametrize("arch", PARAMS)
def test_parameters_and_tensors_of_the_released_sizes(arch):
    with torch.device("meta"):
        model = ravlt.RAVLT(arch)
    dims = resolve_arch(arch)["embed_dims"]
    params = sum(p.numel() for p in model.parameters())
    assert params == PARAMS[arch] + 2 * sum(dims)
    c4 = dims[-1]
    tail = c4 * 1024 + 1024 + 2 * 1024 + 1024 * 1000 + 1000
    assert PARAMS[arch] + tail == CLS_PARAMS[arch]
    assert len(model.state_dict()) == CLS_TENSORS[arch] - TAIL_TENSORS + NORM_TENSORS


def expected_keys(arch: str) -> dict[str, tuple]:
    """Return the keys of a backbone's state dict with their shapes."""
    settings = resolve_arch(arch)
    dims, heads = settings["embed_dims"], settings["num_heads"]
    keys = {}

    def layer(name, weight, bn=False):
        keys[f"{name}.weight"] = weight
        keys[f"{name}.bias"] = weight[:1]
        if bn:
            keys[f"{name}.running_mean"] = keys[f"{name}.running_var"] = weight[:1]
            keys[f"{name}.num_batches_tracked"] = ()

    half = dims[0] // 2
    for i, (out, inp) in enumerate([(half, 3), (half, half), (half, half)]):
        layer(f"patch_embed.proj.{3 * i}", (out, inp, 3, 3))
        layer(f"patch_embed.proj.{3 * i + 1}", (out,), bn=True)
    layer("patch_embed.proj.9", (dims[0], half, 3, 3))
    layer("patch_embed.proj.10", (dims[0],), bn=True)
    for i, c in enumerate(dims):
        hidden = int(3.5 * c)
        keys[f"layers.{i}.RoPE.angle"] = (c // heads[i] // 2,)
        for b in range(settings["depths"][i]):
            block = f"layers.{i}.blocks.{b}"
            keys[f"{block}.gamma_1"] = keys[f"{block}.gamma_2"] = (1, c, 1, 1)
            layer(f"{block}.norm1.norm", (c,))
            layer(f"{block}.norm2.norm", (c,))
            layer(f"{block}.attn.qkvo", (4 * c, c, 1, 1))
            layer(f"{block}.attn.lepe", (c, 1, 5, 5))
            layer(f"{block}.attn.proj", (c, c, 1, 1))
            layer(f"{block}.ffn.fc1", (hidden, c, 1, 1))
            layer(f"{block}.ffn.dwconv", (hidden, 1, 3, 3))
            layer(f"{block}.ffn.fc2", (c, hidden, 1, 1))
            layer(f"{block}.pos", (c, 1, 3, 3))
        layer(f"extra_norms.{i}.norm", (c,))
        if i < 3:
            layer(f"layers.{i}.downsample.reduction", (dims[i + 1], c, 3, 3))
            layer(f"layers.{i}.downsample.norm", (dims[i + 1],), bn=True)
    return keys


def test_attention_of_each_block():
    """A stage may have a different attention type in each of its blocks."""
    attn_types = ("rala", ("diag", "norm"), "linear", ("softmax", "softmax"))
    arch = dict(ARCHS["test"], depths=(1, 2, 2, 2))
    model = ravlt.RAVLT(arch, attn_types)
    found = [[type(b.attn.core) for b in stage.blocks] for stage in model.layers]
    assert found == [
        [CORES["rala"]],
        [CORES["diag"], CORES["norm"]],
        [CORES["linear"]] * 2,
        [CORES["softmax"]] * 2,
    ]
    assert model.attn_types == ("rala", ("diag", "norm"), "linear", "softmax")
    assert "(core): DiagCore" in repr(model)
    with pytest.raises(RAVLTError) as error:
        ravlt.RAVLT(arch, ("rala", ("diag", "norm", "norm"), "rala", "rala"))
    assert str(error.value) == (
        "attn_types[1] has 3 entries, but the stage has 2 blocks; give one attention, "
        "or 2."
    )


def test_options_of_an_attention(tmp_path):
    """Configs pass options as dicts; checkpoints store plain dicts that load safely."""
    raster = ConfigDict(type="cosformer", layout="raster")
    paper = dict(type="softmax", profile="paper")
    attn_types = (raster, paper, ("rala", dict(type="rala")), dict(type="gla"))
    model = build(attn_types=attn_types)
    assert model.layers[0].blocks[0].attn.core.layout == "raster"
    assert not model.layers[1].blocks[0].attn.core.rope
    expected = (dict(raster), paper, "rala", "gla")
    assert model.attn_types == expected
    assert all(type(a) in (dict, str) for a in model.attn_types)
    torch.save(model.state_dict(), tmp_path / "options.pth")
    found = read_checkpoint(tmp_path / "options.pth")
    assert found._metadata[""]["attn_types"] == expected
    build(attn_types=attn_types).load_state_dict(found)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("nothing", "attn_types names the unknown attention 'nothing'; use ["),
        (dict(layout="raster"), "attn_types names the unknown attention 'None'; use ["),
        (
            dict(type="cosformer", layout="spiral"),
            "layout='spiral' is unknown; use one of ('product', 'raster').",
        ),
        (
            dict(type="cosformer", scan="bidir"),
            "attn_types gives CosFormerCore the unknown options ['scan']; it has "
            "['layout'].",
        ),
        (
            dict(type="gla", profile="paper", layout="raster"),
            "attn_types gives NarrowGLACore the unknown options ['layout']; it has "
            "['scan'].",
        ),
        (
            dict(type="rala", profile="papers"),
            "attn_types has the unknown profile='papers'; use 'gated' or 'paper'.",
        ),
    ],
)
def test_unknown_options(spec, message):
    with pytest.raises(RAVLTError) as error:
        build(attn_types=spec)
    assert str(error.value).startswith(message)


def test_the_profile_of_version_0_1():
    """Its configs and checkpoints call the gated layer 'shell'."""
    old, new = (
        build(attn_types=dict(type="cosformer", profile=profile))
        for profile in ("shell", "gated")
    )
    assert old.attn_types == new.attn_types == ("cosformer",) * 4
    assert type(old.layers[0].blocks[0].attn) is GatedAttention
    layer = build_attention(dict(type="cosformer", profile="shell"), 16, 2)
    assert type(layer) is GatedAttention
    for key, value in new.state_dict().items():
        assert torch.equal(old.state_dict()[key], value), key


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("attn_types", ["rala", "softmax", "linear"])
def test_keys_and_shapes_whatever_the_attention(arch, attn_types):
    with torch.device("meta"):
        model = ravlt.RAVLT(arch, attn_types)
    found = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    assert found == expected_keys(arch)


def test_norm_cfg_takes_the_hosts_keys():
    model = build(norm_cfg=dict(type="BN", requires_grad=False, eps=1e-3))
    norm = model.patch_embed.proj[1]
    assert norm.eps == 1e-3
    assert not norm.weight.requires_grad


def test_drop_path_rises_linearly():
    model = ravlt.RAVLT("t")
    rates = [
        block.drop_path.drop_prob for stage in model.layers for block in stage.blocks
    ]
    assert rates == pytest.approx([0.1 * j / 11 for j in range(12)], abs=1e-7)


def test_layer_scale():
    scales = [s.blocks[0].gamma_1.unique().tolist() for s in build("b").layers]
    assert scales == [[1.0], [1.0], pytest.approx([1e-6]), pytest.approx([1e-6])]
    model = build(layer_scale_init=0.5)
    assert {float(s.blocks[0].gamma_2.mean()) for s in model.layers} == {0.5}


def test_initial_weights():
    model = ravlt.RAVLT("t")
    for name, p in model.named_parameters():
        if name.endswith(".weight") and p.ndim == 4:
            spread = 4 / p.numel() ** 0.5  # bounds the error of the estimated std
            assert p.std().item() == pytest.approx(0.02, rel=spread), name
        elif name.endswith(".bias"):
            assert not p.any(), name


def test_repr_names_the_attention_of_each_stage():
    text = repr(build())
    assert "attn_types=('rala', 'rala', 'softmax', 'softmax')" in text
    assert [text.count(name) for name in ("RALACore", "SoftmaxCore")] == [2, 2]


def test_copies_and_pickles():
    model = build().eval()
    x = images(1, 3, 32, 32)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        torch.testing.assert_close(twin(x), model(x), rtol=0, atol=0)


def test_state_dicts_record_the_attention_and_warn(monkeypatch):
    log = []
    monkeypatch.setattr(
        "ravlt.models.archs.print_log", lambda message, **_: log.append(message)
    )
    file = io.BytesIO()
    torch.save(nn.ModuleDict({"backbone": build()}).state_dict(), file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    recorded = state._metadata["backbone"]["attn_types"]
    assert recorded == ("rala", "rala", "softmax", "softmax")
    nn.ModuleDict({"backbone": build()}).load_state_dict(state)
    assert log == []
    nn.ModuleDict({"backbone": build(attn_types="rala")}).load_state_dict(state)
    assert "trained with attn_types=('rala', 'rala', 'softmax', 'softmax')" in log[0]


def test_equal_attention_gives_no_warning(monkeypatch):
    """Checkpoints of version 0.1 name the profile 'shell'."""
    log = []
    monkeypatch.setattr(
        "ravlt.models.archs.print_log", lambda message, **_: log.append(message)
    )
    state = build(attn_types="cosformer").state_dict()
    metadata, old = state._metadata[""], dict(type="cosformer", profile="shell")
    metadata["attn_types"] = (old,) * 4
    build(attn_types="cosformer").load_state_dict(state)
    assert log == []
    metadata["attn_types"] = (old | dict(layout="raster"),) * 4
    build(attn_types="cosformer").load_state_dict(state)
    assert "'layout': 'raster'" in log[0]


BAD = [
    (dict(arch="huge"), "arch='huge' is unknown; use one of"),
    (dict(arch=3), "arch must be a name or a dict, not int"),
    (dict(arch=dict(embed_dims=(8,) * 4, depths=(1,) * 4)), r"lacks \['num_heads'\]"),
    (
        dict(arch=dict(embed_dims=(8,) * 4, depths=(1,) * 4, num_heads=(1,) * 4, x=1)),
        r"unknown keys \['x'\]",
    ),
    (
        dict(arch=dict(embed_dims=(8,) * 4, depths=(1,) * 3, num_heads=(1,) * 4)),
        "depths=.* has 3 entries, but RAVLT has 4 stages",
    ),
    (
        dict(arch=dict(embed_dims=(8, 8, 9, 8), depths=(1,) * 4, num_heads=(2,) * 4)),
        r"embed_dims\[2\]=9 is not divisible by num_heads\[2\]=2",
    ),
    (
        dict(arch=dict(embed_dims=(8, 8, 8, 12), depths=(1,) * 4, num_heads=(2,) * 4)),
        r"embed_dims\[3\]=12 .* head dimension of 6, .* multiple of 4",
    ),
    (dict(attn_types="cosine"), "unknown attention 'cosine'"),
    (dict(attn_types=("rala", "rala")), "attn_types=.* has 2 entries"),
    (dict(layer_scale_init=(1.0,)), "layer_scale_init=.* has 1 entries"),
    (dict(out_indices=(0, 4)), r"out_indices=\(0, 4\) names a stage"),
    (dict(out_indices=(-1,)), r"out_indices=\(-1,\) names a stage"),
    (dict(out_indices=(2, 1)), "must be distinct and rise"),
    (dict(out_indices=()), "must be distinct and rise"),
    (dict(frozen_stages=5), "frozen_stages=5 is out of range"),
    (dict(norm_cfg=dict(type="GN")), "norm_cfg has type='GN'"),
    (dict(norm_cfg=dict(type="BN", affine=False)), "norm_cfg has affine=False"),
    (
        dict(norm_cfg=dict(type="SyncBN", track_running_stats=False)),
        "norm_cfg has track_running_stats=False",
    ),
    (dict(tile=-1), "tile=-1 is negative"),
]


@pytest.mark.parametrize(("kwargs", "message"), BAD, ids=lambda v: str(v)[:40])
def test_bad_arguments(kwargs, message):
    with pytest.raises(RAVLTError, match=message) as caught:
        ravlt.RAVLT(**{"arch": "test", **kwargs})
    assert "\n" not in str(caught.value)
    assert str(caught.value).endswith(".")
