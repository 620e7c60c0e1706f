"""The backbone: sizes, names, freezing, recomputation, precision, errors."""

import copy
import io
import pickle

import pytest
import torch
import torch.distributed as dist
from mmengine.registry import MODELS
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

import ravlt
from ravlt.errors import RAVLTError
from ravlt.models.archs import ARCHS, resolve_arch

# attention_specs.md 1.5: parameters without the classifier's tail, and the tail.
PARAMS = {"t": 13_345_408, "s": 24_038_848, "b": 46_688_928, "l": 93_559_008}
CLS_PARAMS = {"t": 14_897_768, "s": 25_591_208, "b": 48_241_288, "l": 95_242_440}
CLS_TENSORS = {"t": 302, "s": 462, "b": 622, "l": 822}
TAIL_TENSORS, NORM_TENSORS = 9, 8


def build(arch="test", seed: int = 0, **kwargs) -> ravlt.RAVLT:
    torch.manual_seed(seed)
    return MODELS.build(dict(type="RAVLT", arch=arch, **kwargs))


def images(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


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
    """The key grammar of attention_specs.md 1.7, written out."""
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


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("attn_types", ["rala", "softmax", "linear"])
def test_keys_and_shapes_whatever_the_attention(arch, attn_types):
    with torch.device("meta"):
        model = ravlt.RAVLT(arch, attn_types)
    found = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    assert found == expected_keys(arch)


def twin_forward(model: ravlt.RAVLT, x: torch.Tensor) -> list[torch.Tensor]:
    """The network in channels-first layout with plain convolutions, from the text."""
    f = nn.functional

    def norm(layer, x):
        mean, var = x.mean(1, keepdim=True), x.var(1, keepdim=True, correction=0)
        w, b = layer.norm.weight[:, None, None], layer.norm.bias[:, None, None]
        return (x - mean) / (var + 1e-6).sqrt() * w + b

    def conv(layer, x, **kwargs):
        return f.conv2d(x, layer.weight, layer.bias, **kwargs)

    def attention(layer, x):
        b, c, h, w = x.shape
        q, k, v, o = conv(layer.qkvo, x).chunk(4, 1)
        lepe = conv(layer.lepe, v, padding=2, groups=c)
        heads = [t.reshape(b, layer.num_heads, -1, h * w).mT for t in (q, k, v)]
        y = layer.core.dense(*heads, (h, w)) @ heads[2]
        return conv(layer.proj, (y.mT.reshape(b, c, h, w) + lepe) * o)

    def ffn(layer, x):
        x = f.gelu(conv(layer.fc1, x))
        x = x + conv(layer.dwconv, x, padding=1, groups=x.shape[1])
        return conv(layer.fc2, x)

    x = model.patch_embed.proj(x)
    outs = []
    for i, stage in enumerate(model.layers):
        for block in stage.blocks:
            x = x + conv(block.pos, x, padding=1, groups=x.shape[1])
            x = x + block.gamma_1 * attention(block.attn, norm(block.norm1, x))
            x = x + block.gamma_2 * ffn(block.ffn, norm(block.norm2, x))
        if i in model.out_indices:
            outs.append(norm(model.extra_norms[str(i)], x))
        if stage.downsample is not None:
            x = conv(stage.downsample.reduction, x, stride=2, padding=1)
            x = stage.downsample.norm(x)
    return outs


def randomize(model: nn.Module) -> nn.Module:
    """Gives every parameter and statistic a value that would show a mistake."""
    generator = torch.Generator().manual_seed(3)
    for name, value in model.state_dict().items():
        if value.is_floating_point() and not name.endswith("angle"):
            noise = torch.randn(value.shape, generator=generator, dtype=value.dtype)
            positive = name.endswith("running_var")
            value.copy_(noise.abs() + 0.5 if positive else noise * 0.3)
    return model


@pytest.mark.parametrize("attn_types", ["rala", "linear", "softmax", None])
@pytest.mark.parametrize("size", [(64, 96), (37, 45)], ids=str)
def test_the_network_equals_its_channels_first_twin(attn_types, size):
    kwargs = {} if attn_types is None else {"attn_types": attn_types}
    model = randomize(build(**kwargs).double()).eval()
    x = images(2, 3, *size).double()
    for got, expected in zip(model(x), twin_forward(model, x), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("size", [(1, 1), (1, 70), (33, 2), (31, 65)], ids=str)
def test_any_size(size):
    model = build().eval()
    outs = model(images(1, 3, *size))
    for i, (out, dim) in enumerate(zip(outs, model.embed_dims, strict=True)):
        stride = 4 * 2**i
        assert out.shape == (1, dim, -(-size[0] // stride), -(-size[1] // stride))
        mean = out.mean(1)  # the output norm at its initial values
        torch.testing.assert_close(mean, torch.zeros_like(mean), rtol=0, atol=1e-5)


def test_outputs_are_contiguous_down_to_roi_align():
    """mmcv's RoIAlign would read channels-last memory as if it were contiguous."""
    ops = pytest.importorskip("mmcv.ops")
    features = build().eval()(images(2, 3, 64, 96))
    assert all(out.is_contiguous() for out in features)
    lateral = nn.Conv2d(features[0].shape[1], 8, 1)
    pyramid = lateral(features[0])
    rois = torch.tensor([[0, 4.0, 4.0, 30.0, 40.0], [1, 10.0, 5.0, 60.0, 50.0]])
    align = ops.RoIAlign(7, 0.25, 0)
    expected = align(pyramid.clone(memory_format=torch.contiguous_format), rois)
    torch.testing.assert_close(align(pyramid, rois), expected)


def test_a_sample_does_not_see_its_batch():
    model = build().eval()
    x = images(3, 3, 40, 56)
    for together, alone in zip(model(x), model(x[1:2]), strict=True):
        torch.testing.assert_close(together[1:2], alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("out_indices", [(0, 1, 2, 3), (1, 2, 3), (0, 2), (1,)])
def test_outputs_and_gradients_of_out_indices(out_indices):
    full = build().eval()
    model = build(out_indices=out_indices).eval()
    model.load_state_dict(full.state_dict(), strict=False)
    x = images(2, 3, 64, 64)
    outs, all_outs = model(x), full(x)
    for i, out in zip(out_indices, outs, strict=True):
        torch.testing.assert_close(out, all_outs[i], rtol=0, atol=0)
    sum(out.square().sum() for out in outs).backward()
    unused = [name for name, p in model.named_parameters() if p.grad is None]
    assert unused == []


def test_with_cp_gives_identical_gradients():
    plain, saving = build(drop_path_rate=0.3), build(drop_path_rate=0.3, with_cp=True)
    grads = []
    for model in (plain, saving):
        torch.manual_seed(5)  # drop path draws, also in the recomputation
        outs = model(images(4, 3, 64, 64))
        sum((out * out.cos()).sum() for out in outs).backward()
        grads.append({name: p.grad for name, p in model.named_parameters()})
    assert grads[0].keys() == grads[1].keys()
    for name, grad in grads[0].items():
        torch.testing.assert_close(grads[1][name], grad, rtol=0, atol=0, msg=name)
    for name, value in plain.state_dict().items():
        assert torch.equal(saving.state_dict()[name], value), name


def test_with_cp_recomputes_in_training_only(monkeypatch):
    calls = []
    original = torch.utils.checkpoint.checkpoint

    def spy(function, *args, use_reentrant):
        calls.append(use_reentrant)
        return original(function, *args, use_reentrant=use_reentrant)

    monkeypatch.setattr("ravlt.models.blocks.cp.checkpoint", spy)
    model = build(with_cp=True)
    model.train()(images(2, 3, 32, 32))
    assert calls == [False] * sum(ARCHS["test"]["depths"])
    model.eval()(images(2, 3, 32, 32))
    with torch.no_grad():
        model.train()(images(2, 3, 32, 32))
    assert len(calls) == sum(ARCHS["test"]["depths"])


@pytest.mark.parametrize("norm", ["BN", "SyncBN"])
@pytest.mark.parametrize("frozen_stages", range(-1, 5))
def test_frozen_stages_really_freeze(frozen_stages, norm):
    model = build(frozen_stages=frozen_stages, norm_cfg=dict(type=norm))
    assert model.train() is model
    before = copy.deepcopy(model.state_dict())
    optimizer = torch.optim.SGD(
        [p for p in model.parameters() if p.requires_grad]
        or [nn.Parameter(torch.ones(1))],
        lr=0.1,
    )
    outs = model(images(4, 3, 64, 64))
    if frozen_stages < 4:
        sum((out * out.cos()).sum() for out in outs).backward()
        optimizer.step()
    else:
        assert not any(out.requires_grad for out in outs)
    frozen = [f"layers.{i}." for i in range(frozen_stages)]
    frozen += [f"extra_norms.{i}." for i in range(frozen_stages)]
    frozen += ["patch_embed."] if frozen_stages >= 0 else []
    for name, value in model.state_dict().items():
        if name.startswith(tuple(frozen)) or name.endswith("angle"):
            assert torch.equal(value, before[name]), name
        elif value.is_floating_point():
            assert not torch.equal(value, before[name]), name
    for name, module in model.named_modules():
        if f"{name}.".startswith(tuple(frozen)):
            assert not module.training, name


@pytest.mark.parametrize("norm", ["BN", "SyncBN"])
def test_norm_eval_keeps_statistics_and_trains_the_rest(norm):
    model = build(norm_eval=True, norm_cfg=dict(type=norm)).train()
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm)]
    assert len(norms) == 4 + 3
    assert not any(m.training for m in norms)
    before = [m.running_mean.clone() for m in norms]
    outs = model(images(4, 3, 64, 64))
    sum((out * out.cos()).sum() for out in outs).backward()
    for module, mean in zip(norms, before, strict=True):
        assert torch.equal(module.running_mean, mean)
        assert module.weight.grad.abs().sum() > 0
    assert model.layers[0].training


def test_sync_bn_without_a_process_group_is_batch_norm():
    assert not dist.is_initialized()
    plain, synced = build().train(), build(norm_cfg=dict(type="SyncBN")).train()
    assert any(isinstance(m, nn.SyncBatchNorm) for m in synced.modules())
    x = images(2, 3, 64, 64)
    for a, b in zip(plain(x), synced(x), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


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
            spread = 4 / p.numel() ** 0.5  # of the estimate of a standard deviation
            assert p.std().item() == pytest.approx(0.02, rel=spread), name
        elif name.endswith(".bias"):
            assert not p.any(), name


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_autocast_stays_finite_at_the_size_of_detection(dtype):
    """800 x 1344: 67,200 tokens in stage 1, where naive sums leave half precision."""
    arch = dict(
        embed_dims=(16, 16, 16, 16), depths=(1, 1, 1, 1), num_heads=(1, 1, 1, 1)
    )
    model = build(arch, attn_types="rala").eval()
    for stage in model.layers:  # strong attention, far from initialisation
        stage.blocks[0].attn.qkvo.weight.data.mul_(20)
    x = images(1, 3, 800, 1344)
    with torch.no_grad():
        exact = model(x)
        with torch.autocast("cpu", dtype=dtype):
            outs = model(x)
    for out, reference in zip(outs, exact, strict=True):
        assert torch.isfinite(out).all()
        error = (out.float() - reference).norm() / reference.norm()
        assert error < 16 * torch.finfo(dtype).eps


def test_half_module_equals_float_within_rounding():
    model = build().eval()
    x = images(1, 3, 64, 96)
    exact = model(x)
    half = copy.deepcopy(model).bfloat16()
    for out, reference in zip(half(x.bfloat16()), exact, strict=True):
        assert out.dtype == torch.bfloat16
        assert (out.float() - reference).norm() / reference.norm() < 0.05


def test_repr_names_the_attention_of_each_stage():
    text = repr(build())
    assert "attn_types=('rala', 'rala', 'softmax', 'softmax')" in text
    assert [text.count(f"attention={name}") for name in ("rala", "softmax")] == [2, 2]


def test_copies_and_pickles():
    model = build().eval()
    x = images(1, 3, 32, 32)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        torch.testing.assert_close(twin(x), model(x), rtol=0, atol=0)


def test_state_dicts_record_the_attention_and_warn(monkeypatch):
    log = []
    monkeypatch.setattr(
        "ravlt.checkpoint.print_log", lambda message, **_: log.append(message)
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
]


@pytest.mark.parametrize(("kwargs", "message"), BAD, ids=lambda v: str(v)[:40])
def test_bad_arguments(kwargs, message):
    with pytest.raises(RAVLTError, match=message) as caught:
        ravlt.RAVLT(**{"arch": "test", **kwargs})
    assert "\n" not in str(caught.value)
    assert str(caught.value).endswith(".")
