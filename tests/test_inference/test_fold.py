"""Folding: outputs before and after, modes, checkpoints and the deploy hook."""

import copy
from types import SimpleNamespace

import pytest
import torch
from mmengine.config import Config
from mmengine.hooks import EMAHook
from mmengine.model import BaseModule
from mmengine.runner import load_checkpoint
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

import ravlt
from helpers.backbones import build, error, images, randomize
from helpers.reference_ravlt import ReferenceRAVLT
from ravlt.errors import RAVLTError
from ravlt.inference.fold import DeployHook
from ravlt.models.attention import CORES
from ravlt.models.ravlt import Block, GatedAttention
from ravlt.training.curves import HOOKS
from ravlt.weights.checkpoint import load_pretrained

DEFAULT = ("rala", "rala", "softmax", "softmax")
PAPER = dict(type="chela", profile="paper")


@pytest.mark.parametrize("attn_types", ["rala", "linear", "gla", "chela", DEFAULT])
@pytest.mark.parametrize(
    ("dtype", "bound"), [(torch.float64, 1e-11), (torch.float32, 1e-5)]
)
@pytest.mark.parametrize("tile", [0, 7])
def test_same_outputs(attn_types, dtype, bound, tile):
    kwargs = dict(attn_types=attn_types, tile=tile)
    model = randomize(build(**kwargs).to(dtype), mild=dtype is torch.float32).eval()
    x = images(2, 3, 45, 70).to(dtype)
    with torch.no_grad():
        expected = model(x)
        outs = model.switch_to_deploy()(x)
    assert max(map(error, outs, expected)) < bound
    with torch.enable_grad():
        assert max(map(error, model(x), expected)) < bound


def test_the_folded_weights_alone_give_the_outputs():
    """The reference network gives the same outputs with the folded parameters.

    The scales that were folded are then ones.
    """
    model = randomize(build(attn_types="rala").double()).eval()
    x = images(1, 3, 64, 64).double()
    expected = [out.detach() for out in model(x)]
    twin = model.switch_to_deploy()
    with torch.no_grad():
        got = ReferenceRAVLT(twin)(x)
    assert max(map(error, got, expected)) < 1e-5


@pytest.mark.parametrize("attn_types", ["rala", "chela", PAPER], ids=str)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_folded_weights_are_rounded_once(attn_types, dtype):
    """Folding in half precision would round every intermediate product."""
    model = randomize(build(attn_types=attn_types)).to(dtype).eval()
    exact = copy.deepcopy(model).double().switch_to_deploy().state_dict()
    folded = model.switch_to_deploy().state_dict()
    for key, value in exact.items():
        assert folded[key].dtype == dtype
        ulps = (folded[key].double() - value).abs() / (
            value.abs().clamp(min=torch.finfo(dtype).smallest_normal)
            * torch.finfo(dtype).eps
        )
        # Half a unit in the last place; more if float32 products cancel.
        assert ulps.max() < 0.51, key


def test_folds_of_version_0_1_are_refused(tmp_path):
    """Their residual kernels include the identity, and their metadata lacks 'folds'."""
    model = randomize(build()).switch_to_deploy()
    state = copy.deepcopy(model.state_dict())
    build().switch_to_deploy().load_state_dict(state)
    bare = dict(state)  # without metadata the version is unknown
    build().switch_to_deploy().load_state_dict(bare)
    del state._metadata[""]["folds"]
    with pytest.raises(RAVLTError, match="folded by ravlt 0.1"):
        build().switch_to_deploy().load_state_dict(state)
    torch.save(state, tmp_path / "old.pth")
    with pytest.raises(RAVLTError, match="folded by ravlt 0.1"):
        load_pretrained(build().switch_to_deploy(), str(tmp_path / "old.pth"))


@pytest.mark.parametrize("profile", ["gated", "paper"])
@pytest.mark.parametrize("name", CORES)
def test_every_mechanism_folds(name, profile):
    """With layer scales that are not ones."""
    model = build(attn_types=dict(type=name, profile=profile))
    model, x = randomize(model.double()).eval(), images(2, 3, 45, 70).double()
    with torch.no_grad():
        expected = model(x)
        outs = model.switch_to_deploy()(x)
    assert max(map(error, outs, expected)) < 1e-11


class Adapter(nn.Module):
    """A low-rank branch beside a product, as adapters for fine-tuning add it."""

    def __init__(self, product: nn.Conv2d) -> None:
        super().__init__()
        self.product = product
        self.down = nn.Linear(product.in_channels, 2)
        self.up = nn.Linear(2, product.out_channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.product(x) + self.up(self.down(x))


@pytest.mark.parametrize("tile", [0, 7])
@pytest.mark.parametrize("part", ["attn.qkvo", "attn.proj", "ffn.fc1", "ffn.fc2"])
def test_adapters_survive_folds_and_tiles(part, tile):
    model = randomize(build(attn_types="rala", tile=tile))
    for stage in model.layers:
        parent, name = part.split(".")
        layer = stage.blocks[0].get_submodule(parent)
        setattr(layer, name, Adapter(getattr(layer, name)))
    randomize(model.double()).eval()
    x = images(2, 3, 45, 70).double()
    expected = [out.detach() for out in model(x)]
    with torch.no_grad():
        assert max(map(error, model(x), expected)) < 1e-11
        assert max(map(error, model.switch_to_deploy()(x), expected)) < 1e-11


class Residual(GatedAttention):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) + 0.5 * x


class Scaled(Block):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.gamma_2.view(-1) * self.attn(self.gamma_1.view(-1) * x)


@pytest.mark.parametrize("case", [Residual, Scaled])
def test_derived_classes_fold_exactly(case):
    model = randomize(build(attn_types="rala", tile=7).double()).eval()
    for stage in model.layers:
        for block in stage.blocks:
            part = block if case is Scaled else block.attn
            part.__class__ = case
    x = images(1, 3, 45, 70).double()
    expected = [out.detach() for out in model(x)]
    with torch.no_grad():
        assert max(map(error, model(x), expected)) < 1e-11
        assert max(map(error, model.switch_to_deploy()(x), expected)) < 1e-11


@pytest.mark.parametrize("part", ["attn", "ffn", "norm1", "norm2", "weight_norm"])
def test_other_layers_of_a_block_are_left_alone(part):
    model = randomize(build(tile=7).double()).eval()
    for stage in model.layers:
        block, dim = stage.blocks[0], stage.blocks[0].pos.in_channels
        if part == "weight_norm":
            nn.utils.parametrizations.weight_norm(block.attn.qkvo)
        else:
            cls = nn.LayerNorm if part.startswith("norm") else nn.Linear
            args = (dim,) if cls is nn.LayerNorm else (dim, dim)
            setattr(block, part, cls(*args).double())
    x = images(1, 3, 45, 70).double()
    expected = [out.detach() for out in model(x)]
    with torch.no_grad():
        assert max(map(error, model(x), expected)) < 1e-11
        assert max(map(error, model.switch_to_deploy()(x), expected)) < 1e-11


@pytest.mark.parametrize("norm", ["BN", "SyncBN"])
@pytest.mark.parametrize("frozen_stages", [-1, 0, 2, 4])
def test_frozen_models_fold(frozen_stages, norm):
    model = build(frozen_stages=frozen_stages, norm_cfg=dict(type=norm, eps=1e-3))
    randomize(model.double()).eval()
    frozen = {n for n, p in model.named_parameters() if not p.requires_grad}
    x = images(1, 3, 64, 64).double()
    with torch.no_grad():
        expected = model(x)
        outs = model.switch_to_deploy()(x)
    assert max(map(error, outs, expected)) < 1e-11
    assert not any(isinstance(m, _BatchNorm) for m in model.modules())
    left = {n for n, p in model.named_parameters() if not p.requires_grad}
    assert left == {n for n in frozen if n in dict(model.named_parameters())}


@pytest.mark.parametrize("out_indices", [(0,), (1, 2)])
def test_models_without_all_stages_fold(out_indices):
    model = randomize(build(out_indices=out_indices).double()).eval()
    x = images(1, 3, 45, 70).double()
    with torch.no_grad():
        expected = model(x)
        outs = model.switch_to_deploy()(x)
    assert max(map(error, outs, expected)) < 1e-11


def test_folding_twice_changes_no_bit():
    model = randomize(build()).switch_to_deploy()
    before = copy.deepcopy(model.state_dict())
    parts = list(model.modules())
    assert model.switch_to_deploy() is model
    assert all(a is b for a, b in zip(parts, model.modules(), strict=True))
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_what_is_left_alone():
    plain = randomize(build())
    before = copy.deepcopy(plain.state_dict())
    after = plain.switch_to_deploy().state_dict()
    for key, value in after.items():
        same = torch.equal(value, before[key])
        untouched = key.startswith("extra_norms") or any(
            part in key for part in (".angle", ".lepe.", ".pos.", ".dwconv.")
        )
        assert same is untouched, key


def test_modes_afterwards():
    model = build().train()
    assert not model.switch_to_deploy().training
    assert not any(part.training for part in model.modules())
    for quiet in (model.eval, lambda: model.train(False), nn.Sequential(model).eval):
        quiet()
    whole = nn.ModuleDict({"backbone": model})
    for start in (model.train, whole.train):
        with pytest.raises(RAVLTError, match="was folded .*cannot train"):
            start()
    assert not model.training


LOADERS = {
    "torch": lambda model, path: model.load_state_dict(torch.load(path)),
    "loose": lambda model, path: model.load_state_dict(torch.load(path), strict=False),
    "mmengine": lambda model, path: load_checkpoint(model, path, map_location="cpu"),
    "pretrained": lambda model, path: load_pretrained(model, path),
}


NESTED = [(loader, nested) for loader in LOADERS for nested in (False, True)]
NESTED.remove(("pretrained", True))  # load_pretrained takes backbones only


@pytest.mark.parametrize(("loader", "nested"), NESTED)
def test_folded_and_plain_weights_do_not_mix(tmp_path, loader, nested):
    def whole(model) -> nn.Module:
        return nn.ModuleDict({"backbone": model}) if nested else model

    paths = {}
    models = {"plain": randomize(build()), "folded": randomize(build())}
    models["folded"].switch_to_deploy()
    for name, model in models.items():
        paths[name] = str(tmp_path / f"{name}.pth")
        torch.save(whole(model).state_dict(), paths[name])
    load = LOADERS[loader]
    for name, other, word in (
        ("plain", "folded", "after"),
        ("folded", "plain", "before"),
    ):
        model = copy.deepcopy(models[name])
        message = f"saved {word} switch_to_deploy"
        if loader == "pretrained":
            message = "does not fit the model"
        with pytest.raises(RAVLTError, match=message):
            load(whole(model), paths[other])
        fresh = build(seed=1)
        if name == "folded":
            fresh.switch_to_deploy()
        load(whole(fresh), paths[name])
        state = fresh.state_dict()
        for key, value in models[name].state_dict().items():
            assert torch.equal(state[key], value), key


def test_nested_models_fold_and_others_are_refused():
    detector = nn.ModuleDict({"neck": nn.Linear(2, 2), "backbone": randomize(build())})
    x = images(1, 3, 32, 32)
    with torch.no_grad():
        expected = detector["backbone"].eval()(x)
        assert ravlt.switch_to_deploy(detector.train()) is detector
        assert not detector.training
        assert detector["backbone"].deployed
        assert max(map(error, detector["backbone"](x), expected)) < 1e-4
    with pytest.raises(RAVLTError, match="ModuleDict holds no RAVLT to fold"):
        ravlt.switch_to_deploy(nn.ModuleDict({"neck": nn.Linear(2, 2)}))


def test_hook_by_its_name():
    cfg = Config(dict(hook=dict(type="DeployHook")))
    hook = HOOKS.build(cfg.hook)
    assert isinstance(hook, DeployHook)

    class Detector(BaseModule):
        def __init__(self) -> None:
            super().__init__()
            self.backbone = build()

    runner = SimpleNamespace(model=Detector(), hooks=[hook])
    for moment in ("before_run", "before_train", "before_val", "before_val_epoch"):
        getattr(hook, moment)(runner)
    assert not runner.model.backbone.deployed
    runner.model.train()
    hook.before_test(runner)
    assert runner.model.backbone.deployed


def test_hook_beside_an_average_of_weights():
    """EMAHook swaps parameters by position; the averaged weights are tested."""
    model, average = randomize(build()).eval(), build(seed=1)
    average.load_state_dict(model.state_dict())
    for parameter in average.parameters():
        parameter.data *= 0.9
    x = images(1, 3, 64, 64)
    with torch.no_grad():
        expected, plain = average.eval()(x), model(x)
    ema, deploy = EMAHook(), DeployHook()
    runner = SimpleNamespace(model=model, hooks=[ema, deploy])
    ema.before_run(runner)
    ema.ema_model.module.load_state_dict(average.state_dict())
    for moment in ("before_test", "before_test_epoch"):
        for hook in runner.hooks:
            getattr(hook, moment)(runner)
    with torch.no_grad():
        assert max(map(error, model(x), expected)) < 1e-3
        ema.after_test_epoch(runner)
        assert max(map(error, model(x), plain)) < 1e-3
