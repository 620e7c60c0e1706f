"""Backbones that are not installed are read from the config, where that suffices."""

import copy

import pytest
from mmengine.config import Config

from helpers.swap_configs import DEEPLAB, MASK2FORMER, RETINANET, at, load
from ravlt import RAVLTError, swap_backbone
from ravlt.config import load_config
from ravlt.swap import plan_swap
from ravlt.swap.trial import try_model

ABSENT = dict(type="absent_package.Net", arch="tiny", out_indices=[0, 1, 2, 3])


def on_absent_backbone(name: str) -> Config:
    """Return a config whose backbone comes from a package that is not installed."""
    cfg = copy.deepcopy(load(name))
    cfg.model.backbone = copy.deepcopy(ABSENT)
    cfg.custom_imports = dict(imports=["absent_package.models"])
    return cfg


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        # From the neck; its start_level leaves the first out.
        (RETINANET, {"neck.in_channels": [128, 256, 512], "neck.start_level": 0}),
        # From a head of mmseg.
        (
            "mmseg::upernet/upernet_r50_4xb4-160k_ade20k-512x512.py",
            {
                "decode_head.in_channels": [64, 128, 256, 512],
                "auxiliary_head.in_channels": 256,
            },
        ),
    ],
    ids=["neck", "head"],
)
def test_widths_of_four_levels_suffice(name, wanted):
    swapped = swap_backbone(on_absent_backbone(name))
    assert {path: at(swapped.model, path) for path in wanted} == wanted
    installed = swap_backbone(load(name))
    assert swapped.model.backbone.get("out_indices") == installed.model.backbone.get(
        "out_indices"
    )


def test_the_swapped_model_runs():
    swapped = swap_backbone(on_absent_backbone(RETINANET), "test")
    trial = try_model(swapped, [64])
    assert trial.loss > 0
    assert trial.idle == []


def test_the_assumption_is_a_warning():
    swap = plan_swap(on_absent_backbone(RETINANET))
    assert swap.warnings[0] == (
        "The class of the backbone Net is not installed: its widths "
        "[256, 512, 1024, 2048], read from the config, are taken for strides [4, 8, "
        "16, 32]; check them."
    )


@pytest.mark.parametrize(
    ("name", "widths"),
    [
        (RETINANET, [256, 512, 1024]),  # of which strides?
        (RETINANET, [768] * 4),  # perhaps of one stride
        (RETINANET, [256, 1024, 512, 2048]),
        (DEEPLAB, None),  # of its first and last level only
        (MASK2FORMER, None),  # a detector without a neck
    ],
    ids=["three", "equal", "unordered", "single numbers", "no neck"],
)
def test_settings_that_do_not_suffice(name, widths):
    cfg = on_absent_backbone(name)
    if widths:
        cfg.model.neck.in_channels = widths
    with pytest.raises(RAVLTError) as error:
        swap_backbone(cfg)
    assert str(error.value).startswith(
        "The backbone Net cannot run here, so that what it gives is not "
    )


def test_a_backbone_that_fails_is_not_taken_for_an_absent_one():
    cfg = copy.deepcopy(load(RETINANET))
    cfg.model.backbone.depth = "no number"
    with pytest.raises(RAVLTError, match="The backbone ResNet cannot run here"):
        swap_backbone(cfg)


def test_norms_of_an_old_default():
    """PyTorch 2.10 and later refuse eps=0 in training; widths do not depend on it."""
    cfg = copy.deepcopy(load(RETINANET))
    cfg.model.backbone.norm_cfg.eps = 0
    cfg.model.backbone.norm_eval = False
    assert swap_backbone(cfg).model.neck.in_channels == [128, 256, 512]


def test_the_package_of_the_old_backbone_is_imported_no_more():
    assert swap_backbone(on_absent_backbone(RETINANET)).custom_imports == dict(
        imports=["ravlt"]
    )


def test_an_installed_package_may_register_other_parts(monkeypatch):
    monkeypatch.setattr("ravlt.swap.imports.find_spec", lambda name: object())
    imports = swap_backbone(on_absent_backbone(RETINANET)).custom_imports.imports
    assert imports == ["absent_package.models", "ravlt"]


def test_a_package_that_another_part_needs_stays():
    cfg = on_absent_backbone(RETINANET)
    cfg.model.bbox_head.loss_cls.type = "absent_package.Loss"
    imports = swap_backbone(cfg).custom_imports.imports
    assert imports == ["absent_package.models", "ravlt"]


def test_a_config_whose_imports_fail_can_be_read(tmp_path):
    path = tmp_path / "absent.py"
    imports = dict(imports=["absent_package.models"], allow_failed_imports=False)
    path.write_text(f"_base_ = {RETINANET!r}\ncustom_imports = {imports!r}\n")
    with pytest.raises(ImportError, match="absent_package"):
        load_config(str(path))
    cfg = load_config(str(path), allow_failed_imports=True)
    assert cfg.custom_imports == imports
    assert cfg.model.type == "RetinaNet"
