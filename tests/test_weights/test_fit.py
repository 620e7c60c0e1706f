from collections import OrderedDict

import pytest
import torch
from torch import nn

from ravlt.weights.fit import load_fitting


class Renaming(nn.Linear):
    """Loads what an older version called `kernel`."""

    def _load_from_state_dict(self, state_dict, prefix, *args) -> None:
        old = f"{prefix}kernel"
        if old in state_dict:
            state_dict[f"{prefix}weight"] = state_dict.pop(old)
        super()._load_from_state_dict(state_dict, prefix, *args)


def detector(num_classes: int = 3) -> nn.Module:
    head = nn.ModuleDict(
        {"shared": Renaming(4, 4), "fc_cls": nn.Linear(4, num_classes)}
    )
    backbone = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    roi = nn.ModuleDict({"bbox_head": head})
    return nn.ModuleDict(
        {"backbone": backbone, "neck": nn.Linear(4, 4), "roi_head": roi}
    )


@pytest.fixture
def saved() -> OrderedDict:
    torch.manual_seed(1)
    return detector().state_dict()


TOTAL = 12  # 2 + 4 of the backbone, 2 of the neck, 4 of the head


def test_an_exact_file(saved):
    state, fit = load_fitting(detector(), saved)
    assert (
        fit.is_complete and fit.summary() == f"{TOTAL} of the model's {TOTAL} tensors"
    )
    assert state.keys() == saved.keys() and state._metadata == saved._metadata


@pytest.mark.parametrize("prefix", ["model.", "module.", "module.model."])
def test_a_prefix_of_all_names_is_dropped(saved, prefix):
    given = OrderedDict((prefix + key, value) for key, value in saved.items())
    given._metadata = {prefix[:-1]: {"version": 7}, f"{prefix}neck": {"version": 8}}
    model = detector()
    state, fit = load_fitting(model, given)
    assert fit.is_complete
    assert state._metadata == {"": {"version": 7}, "neck": {"version": 8}}
    model.load_state_dict(state)
    for key, value in model.state_dict().items():
        assert torch.equal(value, saved[key]), key


def test_a_prefix_of_some_names_stays(saved):
    given = {f"model.{k}": v for k, v in saved.items()} | {"extra.x": torch.ones(1)}
    _, fit = load_fitting(detector(), given)
    assert not fit.loaded and len(fit.unexpected) == TOTAL + 2


def test_other_classes_name_the_head(saved):
    model = detector(num_classes=5)
    state, fit = load_fitting(model, saved)
    assert fit.reshaped == [
        f"roi_head.bbox_head.fc_cls.{n}" for n in ("weight", "bias")
    ]
    assert fit.summary() == (
        "10 of the model's 12 tensors, 2 of another shape in roi_head.bbox_head"
    )
    assert fit.remedy() == (
        "set num_classes of roi_head.bbox_head as in its training "
        "(roi_head.bbox_head.fc_cls.weight is (3, 4), the model's (5, 4))"
    )
    model.load_state_dict(state)  # strict: all shapes agree
    shared = {k: v for k, v in saved.items() if "fc_cls" not in k}
    assert all(torch.equal(model.state_dict()[k], v) for k, v in shared.items())


def test_other_inputs_of_a_head_are_no_other_classes(saved):
    saved["roi_head.bbox_head.shared.weight"] = torch.ones(4, 2)
    _, fit = load_fitting(detector(num_classes=5), saved)
    assert fit.remedy().startswith("give the config that it was trained with")


def test_each_difference_is_counted_by_part(saved):
    del saved["neck.bias"]
    saved["neck.weight"] = torch.ones(2, 2)
    saved["aux_head.a.weight"] = saved["aux_head.a.bias"] = torch.ones(1)
    state, fit = load_fitting(detector(), saved)
    assert fit.summary() == (
        "10 of the model's 12 tensors, 1 missing in neck, 2 unexpected in aux_head, 1 "
        "of another shape in neck"
    )
    assert fit.remedy() == (
        "give the config that it was trained with (first difference: neck.bias)"
    )
    assert state.keys() == detector().state_dict().keys()


@pytest.mark.parametrize("prefix", ["backbone.", ""])
def test_a_backbone_alone_is_recognized(saved, prefix):
    given = {
        prefix + key.removeprefix("backbone."): value
        for key, value in saved.items()
        if key.startswith("backbone.")
    } | {"head.fc.weight": torch.ones(2, 2)}
    _, fit = load_fitting(detector(), given)
    assert not fit.is_complete and bool(fit.loaded) == bool(prefix)
    assert fit.remedy() == (
        "it holds only a backbone, as a classifier's file does, so train with it in "
        "model.backbone.init_cfg"
    )


def test_another_kind_of_model_is_no_backbone(saved):
    given = {k: v for k, v in saved.items() if k.startswith("backbone.")}
    _, fit = load_fitting(detector(), given | {"rpn_head.conv.weight": torch.ones(2)})
    assert fit.remedy().startswith("give the config that it was trained with")


def test_what_a_model_renames_fits(saved):
    saved["roi_head.bbox_head.shared.kernel"] = saved.pop(
        "roi_head.bbox_head.shared.weight"
    )
    model = detector()
    state, fit = load_fitting(model, saved)
    assert fit.is_complete
    model.load_state_dict(state)
    kernel = saved["roi_head.bbox_head.shared.kernel"]
    assert torch.equal(model["roi_head"]["bbox_head"]["shared"].weight, kernel)


@pytest.mark.parametrize(
    ("key", "complete"),
    [
        ("roi_head.mask_head.conv.weight", True),
        ("roi_head.bbox_head.conv.weight", False),
        ("backbone.2.weight", False),
    ],
)
def test_only_whole_parts_may_be_left_over(saved, key, complete):
    saved[key] = torch.ones(1)
    _, fit = load_fitting(detector(), saved)
    assert not fit.is_exact and fit.is_complete == complete
    assert fit.unexpected == [key]
    assert fit.summary().startswith("12 of the model's 12 tensors, 1 unexpected in ")


def test_what_does_not_matter_fits(saved):
    del saved["backbone.1.num_batches_tracked"]
    saved["data_preprocessor.mean"] = torch.ones(3)
    saved["backbone.extra_norms.3.norm.weight"] = torch.ones(4)
    state, fit = load_fitting(detector(), saved)
    assert fit.is_complete
    assert state.keys() == detector().state_dict().keys()


def test_what_is_no_tensor_does_not_fit(saved):
    saved["neck.bias"] = "a word"
    saved[""] = saved["-"] = 3
    _, fit = load_fitting(detector(), saved)
    assert fit.missing == ["neck.bias"] and fit.unexpected == ["", "-"]
    assert fit.summary().endswith(
        ", 1 missing in neck, 1 unexpected in , 1 unexpected in -"
    )
