"""The classifiers through timm's interface: sizes, outputs, features, weight files."""

import copy
from collections.abc import Callable
from functools import partial

import pytest
import timm
import torch
from mmcv.ops import RoIAlign
from mmengine.registry import MODELS, DefaultScope
from timm.optim import create_optimizer_v2
from timm.optim._param_groups import param_groups_layer_decay, param_groups_weight_decay
from torch import nn

import ravlt
from helpers.backbones import error, images, randomize
from ravlt.errors import RAVLTError
from ravlt.inference.tiled import tile_side
from ravlt.models import RAVLTClassifier

# Number of parameters and of tensors in the released checkpoints.
TOTALS = dict(
    t=(14_897_768, 302), s=(25_591_208, 462), b=(48_241_288, 622), l=(95_242_440, 822)
)
DIMS = dict(
    t=(64, 128, 256, 512),
    s=(64, 128, 320, 512),
    b=(96, 192, 384, 512),
    l=(96, 192, 448, 640),
)
SIZES = pytest.mark.parametrize("size", TOTALS)
NAMES = [f"ravlt_{size}{kind}" for size in TOTALS for kind in ("", "_linear")]


def small(num_classes: int = 10, **kwargs) -> RAVLTClassifier:
    torch.manual_seed(0)
    return timm.create_model("ravlt_t", arch="test", num_classes=num_classes, **kwargs)


@pytest.mark.integration
@SIZES
def test_totals_are_the_released_ones(size):
    with torch.device("meta"):
        plain, linear = (timm.create_model(f"ravlt_{size}{k}") for k in ("", "_linear"))
    assert (sum(p.numel() for p in plain.parameters()), len(plain.state_dict())) == (
        TOTALS[size]
    )
    assert plain.attn_types == ("rala", "rala", "softmax", "softmax")
    assert linear.attn_types == ("rala",) * 4
    shapes = [{k: v.shape for k, v in m.state_dict().items()} for m in (plain, linear)]
    assert shapes[0] == shapes[1]


def test_timm_lists_them():
    assert timm.list_models("ravlt_*") == sorted(NAMES)
    assert timm.list_models("ravlt_*", pretrained=True) == [
        f"ravlt_{size}.in1k" for size in sorted(TOTALS)
    ]
    for size in TOTALS:
        cfg = timm.get_pretrained_cfg(f"ravlt_{size}")
        assert cfg.url == (
            "https://huggingface.co/aldjalkdf/RAVLT/resolve/main/"
            f"RAVLT_{size.upper()}.pth"
        )
        assert (cfg.num_classes, cfg.input_size) == (1000, (3, 224, 224))
        assert cfg.license == "unknown"  # the weights were released without a license
        assert not timm.get_pretrained_cfg(f"ravlt_{size}_linear").url


def test_stages_are_the_backbones():
    model = randomize(small(), mild=True).eval()
    backbone = randomize(ravlt.RAVLT("test")).eval()
    backbone.load_state_dict(
        {k: v for k, v in model.state_dict().items() if k in backbone.state_dict()},
        strict=False,
    )
    x = images(2, 3, 64, 96)
    with torch.no_grad():
        tokens = model.forward_intermediates(
            x, intermediates_only=True, output_fmt="NHWC"
        )
        for i, (out, own) in enumerate(zip(backbone(x), tokens, strict=True)):
            expected = backbone.extra_norms[str(i)](own).permute(0, 3, 1, 2)
            assert torch.equal(out, expected)


def test_scores_are_those_of_the_definition():
    model = randomize(small().double(), mild=True).eval()
    x = images(2, 3, 64, 96).double()
    weights = dict(model.named_parameters()) | dict(model.named_buffers())
    with torch.no_grad():
        (maps,) = model.forward_intermediates(x, indices=1, intermediates_only=True)
        hidden = torch.einsum("oc,bchw->bhwo", weights["proj.weight"][..., 0, 0], maps)
        hidden = hidden + weights["proj.bias"] - weights["norm.running_mean"]
        hidden = hidden / (weights["norm.running_var"] + 1e-5).sqrt()
        hidden = hidden * weights["norm.weight"] + weights["norm.bias"]
        hidden = (hidden / (1 + (-hidden).exp())).mean((1, 2))
        expected = hidden @ weights["head.weight"][..., 0, 0].T + weights["head.bias"]
        assert error(model(x), expected) < 1e-12


def test_trains():
    model = small(drop_path_rate=0.1, drop_rate=0.1).train()
    model(images(2, 3, 64, 64)).square().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


def test_features_and_head_are_the_whole():
    model = randomize(small(), mild=True).eval()
    x = images(2, 3, 64, 96)
    with torch.no_grad():
        features = model.forward_features(x)
        assert features.shape == (2, model.num_features, 2, 3)
        assert error(model.forward_head(features), model(x)) < 1e-6
        before = model.forward_head(features, pre_logits=True)
        assert before.shape == (2, model.head_hidden_size)
        assert error(before, features.mean((2, 3))) < 1e-5


def test_classes_and_pooling_can_be_replaced():
    model = small().eval()
    x = images(2, 3, 64, 64)
    assert model.get_classifier() is model.head
    model.reset_classifier(7)
    assert model(x).shape == (2, 7)
    assert model.num_classes == 7
    model.reset_classifier(0)
    assert model(x).shape == (2, 1024)
    model.reset_classifier(0, "")
    assert model(x).shape == (2, 1024, 2, 2)
    model.reset_classifier(5, "max")
    assert model(x).shape == (2, 5)
    assert small(num_classes=0, global_pool="").eval()(x).shape == (2, 1024, 2, 2)
    assert small(in_chans=4).eval()(images(1, 4, 32, 32)).shape == (1, 10)


@pytest.mark.integration
@SIZES
def test_feature_info_is_true(size):
    with torch.device("meta"):
        model = timm.create_model(f"ravlt_{size}", features_only=True)
        outs = model(torch.zeros(1, 3, 96, 64))
    assert model.feature_info.channels() == list(DIMS[size])
    assert model.feature_info.reduction() == [4, 8, 16, 32]
    for out, channels, step in zip(
        outs,
        model.feature_info.channels(),
        model.feature_info.reduction(),
        strict=True,
    ):
        assert out.shape == (1, channels, 96 // step, 64 // step)


@pytest.mark.parametrize("out_indices", [(0, 1, 2, 3), (1, 2), (3,), (-2, -1)])
def test_features_only(out_indices):
    whole = randomize(small(), mild=True).eval()
    x = images(2, 3, 64, 96)
    model = small(features_only=True, out_indices=out_indices).eval()
    state = whole.state_dict()
    model.model.load_state_dict({k: state[k] for k in model.model.state_dict()})
    with torch.no_grad():
        last, every = whole.forward_intermediates(x)
        assert torch.equal(last, whole.forward_features(x))
        for out, index in zip(model(x), out_indices, strict=True):
            assert torch.equal(out, every[index])
    # DistributedDataParallel raises if a parameter gets no gradient.
    model.train()
    sum(out.square().sum() for out in model(x)).backward()
    assert all(p.grad is not None for p in model.parameters())


def test_intermediates():
    model = small().eval()
    x = images(1, 3, 64, 96)
    with torch.no_grad():
        every = model.forward_intermediates(x, intermediates_only=True)
        (last,) = model.forward_intermediates(x, indices=1, intermediates_only=True)
        tokens = model.forward_intermediates(
            x, indices=[0, 2], intermediates_only=True, output_fmt="NHWC"
        )
    assert len(every) == 4
    assert torch.equal(last, every[3])
    for out, index in zip(tokens, (0, 2), strict=True):
        assert torch.equal(out.permute(0, 3, 1, 2), every[index])
    with pytest.raises(RAVLTError, match="output_fmt='NLC' is not"):
        model.forward_intermediates(x, output_fmt="NLC")


@pytest.mark.parametrize("indices", [1, [0, 2], [1], None])
def test_stopping_early_runs_no_later_stage(indices):
    model, ran = small().eval(), []
    for i, stage in enumerate(model.layers):
        stage.register_forward_hook(lambda *_, i=i: ran.append(i))
    x = images(1, 3, 64, 96)
    every = model.forward_intermediates(x, indices, intermediates_only=True)
    assert ran == [0, 1, 2, 3]
    ran.clear()
    last, taken = model.forward_intermediates(x, indices, stop_early=True)
    final = 3 if isinstance(indices, int | None) else max(indices)
    assert ran == list(range(final + 1))
    for out, expected in zip(taken, every, strict=True):
        assert torch.equal(out, expected)
    assert torch.equal(last, model.forward_features(x) if final == 3 else taken[-1])


def test_the_norm_of_the_last_stage():
    model = randomize(small(), mild=True).eval()
    x = images(2, 3, 64, 96)
    plain = model.forward_intermediates(x, intermediates_only=True)
    normed = model.forward_intermediates(x, norm=True, intermediates_only=True)
    assert all(map(torch.equal, normed[:3], plain[:3]))
    assert torch.equal(normed[3], model.forward_features(x))
    (tokens,) = model.forward_intermediates(
        x, 1, norm=True, output_fmt="NHWC", intermediates_only=True
    )
    assert torch.equal(tokens.permute(0, 3, 1, 2), normed[3])


@pytest.mark.parametrize("prune_norm", [False, True])
@pytest.mark.parametrize("indices", [[1], [0, 3]])
def test_a_pruned_model_gets_a_new_head(indices, prune_norm):
    model = randomize(small(), mild=True).eval()
    x = images(2, 3, 64, 96)
    (last,) = model.forward_intermediates(x, indices[-1:], intermediates_only=True)
    kept = model.head.weight if indices[-1] == 3 and not prune_norm else None
    model.prune_intermediate_layers(indices, prune_norm=prune_norm, prune_head=False)
    assert kept is None or model.head.weight is kept
    model.reset_classifier(10)
    assert model(x).shape == (2, 10)
    if kept is None:
        pooled = last.mean((2, 3))
        expected = pooled @ model.head.weight[..., 0, 0].T + model.head.bias
        assert error(model(x), expected) < 1e-5
    model.prune_intermediate_layers(indices[-1:])
    assert model(x).shape[1] == model.num_features


@pytest.mark.parametrize("cls", ["fx", "hook"])
def test_other_ways_to_extract_features_are_refused(cls):
    """They would return a stage's tokens after the step down to the next."""
    with pytest.raises(RAVLTError, match=f"feature_cls='{cls}' would return other"):
        small(features_only=True, feature_cls=cls)


def test_recomputing_gives_the_same_gradients():
    grads = []
    for enable in (False, True):
        model = small(drop_path_rate=0.0).train()
        model.set_grad_checkpointing(enable)
        model(images(2, 3, 64, 64)).square().sum().backward()
        grads.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    assert error(*grads) < 1e-6


def test_decay_spares_layer_scales():
    model = small()
    spared, decayed = (
        {id(p) for p in group["params"]}
        for group in sorted(
            param_groups_weight_decay(
                model, 0.05, no_weight_decay_list=model.no_weight_decay()
            ),
            key=lambda group: group["weight_decay"],
        )
    )
    for name, parameter in model.named_parameters():
        exempt = "gamma_" in name or parameter.ndim == 1
        assert id(parameter) in (spared if exempt else decayed), name
    assert len(model.no_weight_decay()) == 10


def test_layer_decay_rises_with_depth():
    model = small()
    groups = param_groups_layer_decay(
        model, 0.05, layer_decay=0.5, no_weight_decay_list=model.no_weight_decay()
    )
    scales = {id(p): group["lr_scale"] for group in groups for p in group["params"]}
    named = dict(model.named_parameters())
    assert set(scales) == {id(p) for p in named.values()}
    order = [
        ["patch_embed.proj.0.weight"],
        ["layers.0.blocks.0.pos.weight", "layers.0.downsample.reduction.weight"],
        ["layers.1.blocks.0.pos.weight", "layers.1.downsample.reduction.weight"],
        ["layers.2.blocks.0.pos.weight"],
        ["layers.2.blocks.1.pos.weight", "layers.2.downsample.reduction.weight"],
        ["layers.3.blocks.0.pos.weight", "proj.weight", "norm.weight"],
        ["head.weight"],
    ]
    for depth, names in enumerate(reversed(order)):
        assert {scales[id(named[name])] for name in names} == {0.5**depth}


def test_optimizers_of_timm_take_it():
    optimizer = create_optimizer_v2(small(), "adamw", layer_decay=0.9)
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(
        list(small().parameters())
    )


@pytest.mark.parametrize("wrap", ["bare", "model", "state_dict", "model_ema"])
def test_pretrained_files(tmp_path, wrap):
    origin = randomize(small(num_classes=1000))
    state = origin.state_dict()
    torch.save(state if wrap == "bare" else {wrap: state}, tmp_path / "w.pth")
    overlay = dict(file=str(tmp_path / "w.pth"))
    model = small(num_classes=1000, pretrained=True, pretrained_cfg_overlay=overlay)
    loaded = model.state_dict()
    assert all(torch.equal(loaded[key], state[key]) for key in state)
    other = small(num_classes=7, pretrained=True, pretrained_cfg_overlay=overlay)
    assert torch.equal(other.proj.weight, origin.proj.weight)
    assert other.head.weight.shape[0] == 7
    features = small(
        features_only=True, pretrained=True, pretrained_cfg_overlay=overlay
    )
    assert torch.equal(
        features.model.layers[3].blocks[0].pos.weight,
        origin.layers[3].blocks[0].pos.weight,
    )


@pytest.mark.parametrize("wrap", [lambda s: s, lambda s: {"model": s}])
def test_pretrained_files_with_keys_that_are_no_names(wrap):
    overlay = dict(state_dict=wrap({0: torch.ones(1)}), url="here.pth")
    with pytest.raises(RAVLTError, match=r"'here\.pth' has a key of type int where"):
        small(pretrained=True, pretrained_cfg_overlay=overlay)


def test_linear_models_have_no_weights_to_pretend():
    with pytest.raises(RuntimeError, match="No pretrained weights exist"):
        timm.create_model("ravlt_t_linear", pretrained=True)


def test_folds():
    model = randomize(small(), mild=True).eval()
    x = images(2, 3, 64, 96)
    with torch.no_grad():
        expected = model(x)
        folded = ravlt.switch_to_deploy(copy.deepcopy(model))
        assert error(folded(x), expected) < 1e-4
    assert not any(isinstance(m, nn.BatchNorm2d) for m in folded.modules())


@pytest.mark.integration
def test_mmseg_takes_it_by_its_timm_backbone():
    torch.manual_seed(0)
    cfg = dict(
        type="TIMMBackbone",
        model_name="ravlt_t",
        arch="test",
        pretrained=False,
        out_indices=(1, 3),
    )
    with DefaultScope.overwrite_default_scope("mmseg"):
        backbone = MODELS.build(cfg).eval()
    for train in (False, True):
        outs = backbone.train(train)(images(1, 3, 64, 96))
        assert [tuple(out.shape) for out in outs] == [(1, 32, 8, 12), (1, 64, 2, 3)]
        assert all(out.is_contiguous() for out in outs)
    # RoIAlign reads any memory format as contiguous, and a convolution passes the
    # format of its input on.
    align = RoIAlign(7, 0.125, 0)
    lateral = nn.Conv2d(32, 8, 1)(outs[0])
    rois = torch.tensor([[0, 4.0, 4.0, 30.0, 40.0]])
    expected = align(lateral.clone(memory_format=torch.contiguous_format), rois)
    torch.testing.assert_close(align(lateral, rois), expected, rtol=0, atol=0)


@pytest.mark.integration
@pytest.mark.parametrize("name", NAMES)
def test_default_cfgs_are_true(name):
    """timm's own tests require this of every model."""
    with torch.device("meta"):
        model = timm.create_model(name).eval()
        cfg = model.pretrained_cfg
        features = model.forward_features(torch.zeros(1, *cfg["input_size"]))
        assert features.shape[1] == model.num_features
        assert tuple(features.shape[-2:]) == tuple(cfg["pool_size"])
        assert model(torch.zeros(2, *cfg["input_size"])).shape == (2, 1000)
    keys = model.state_dict().keys()
    for part in (cfg["classifier"], cfg["first_conv"]):
        assert f"{part}.weight" in keys
    assert model.get_classifier() is model.get_submodule(cfg["classifier"])
    model.reset_classifier(0)
    assert not any(key.startswith(cfg["classifier"]) for key in model.state_dict())


def test_batches_do_not_mix_in_inference():
    model = randomize(small(), mild=True).eval()
    x = images(3, 3, 64, 64)
    with torch.no_grad():
        together, alone = model(x), torch.cat([model(image[None]) for image in x])
    assert error(together, alone) < 1e-5


def test_tiles_stop_early(monkeypatch):
    """The further stages do not run, and results are the same."""
    model, ran = randomize(small(tile=3), mild=True).eval(), set()

    def spy(stage: int, forward: Callable, x: torch.Tensor) -> torch.Tensor:
        ran.add(stage)
        return forward(x)

    # A hook would rule out tiles.
    for i, stage in enumerate(model.layers):
        pos = stage.blocks[0].pos
        monkeypatch.setattr(pos, "forward", partial(spy, i, pos.forward))
    x = images(2, 3, 64, 96)
    expected = model.forward_intermediates(x, [0, 1], intermediates_only=True)
    ran.clear()
    with torch.no_grad():
        assert tile_side(model, x) == 3
        last, taken = model.forward_intermediates(x, [0, 1], stop_early=True)
    assert ran == {0, 1}
    for got, wanted in zip((*taken, last), (*expected, expected[1]), strict=True):
        assert error(got, wanted) < 1e-5


@pytest.mark.parametrize("prune_head", [False, True])
def test_shortened_models_have_no_classifier(prune_head):
    """It would not fit: what is left are pooled maps, or maps. They fold, too."""
    model, x = randomize(small(), mild=True).eval(), images(2, 3, 64, 96)
    with torch.no_grad():
        maps = model.forward_intermediates(x, intermediates_only=True)[1]
        model.prune_intermediate_layers([0, 1], prune_head=prune_head)
        expected = maps if prune_head else maps.mean((2, 3))
        assert error(model(x), expected) < 1e-5
        assert error(ravlt.switch_to_deploy(model)(x), expected) < 1e-4


def test_new_classes_begin_as_the_first_ones():
    """With the same distribution, in the precision of the model."""
    for dtype in (torch.float32, torch.bfloat16):
        model = small().to(dtype)
        model.reset_classifier(1000)
        assert model.head.weight.dtype == dtype
        spread = model.head.weight.float().std().item()
        assert spread == pytest.approx(0.02, rel=0.05)
        assert not model.head.bias.any()
