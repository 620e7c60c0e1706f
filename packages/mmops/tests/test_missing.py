"""What mmcv finds in the module beside the operators."""

import inspect
import re
import shutil
import subprocess
import sys
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import mmcv.ops
import pytest
import torch

# The operators that README.md lists, and the functions that mmcv calls for them.
PROMISED = {
    "nms": "nms",
    "batched_nms": "nms",
    "soft_nms": "softnms",
    "nms_match": "nms_match",
    "bbox_overlaps": "bbox_overlaps",
    "RoIAlign": "roi_align_forward roi_align_backward",
    "RoIPool": "roi_pool_forward roi_pool_backward",
    "DeformRoIPoolPack": "deform_roi_pool_forward deform_roi_pool_backward",
    "ModulatedDeformRoIPoolPack": "deform_roi_pool_forward deform_roi_pool_backward",
    "PrRoIPool": "prroi_pool_forward prroi_pool_backward prroi_pool_coor_backward",
    "BorderAlign": "border_align_forward border_align_backward",
    "sigmoid_focal_loss": "sigmoid_focal_loss_forward sigmoid_focal_loss_backward",
    "softmax_focal_loss": "softmax_focal_loss_forward softmax_focal_loss_backward",
    "DeformConv2d": "deform_conv_forward deform_conv_backward_input "
    "deform_conv_backward_parameters",
    "ModulatedDeformConv2d": "modulated_deform_conv_forward "
    "modulated_deform_conv_backward",
    "SAConv2d": "deform_conv_forward",
    "MultiScaleDeformableAttention": "ms_deform_attn_forward ms_deform_attn_backward",
    "MaskedConv2d": "masked_im2col_forward masked_col2im_forward",
    "CARAFE": "carafe_forward carafe_backward",
    "CARAFENaive": "carafe_naive_forward carafe_naive_backward",
    "PSAMask": "psamask_forward psamask_backward",
    "SyncBatchNorm": "sync_bn_forward_mean sync_bn_forward_var sync_bn_forward_output "
    "sync_bn_backward_param sync_bn_backward_data",
    "CornerPool": "",
    "point_sample": "",
    "CrissCrossAttention": "",
}
ROOT = Path(__file__).parents[1]


def find_asked() -> set[str]:
    """Return the names that mmcv asks its compiled module for."""
    asked = set()
    for path in Path(mmcv.__file__).parent.glob("ops/*.py"):
        lists = re.findall(r"load_ext\(\s*'_ext',\s*\[(.*?)\]", path.read_text(), re.S)
        asked.update(re.findall(r"'(\w+)'", " ".join(lists)))
    assert len(asked) > 100
    return asked


def test_exactly_the_promised_operators_are_here(ours):
    promised = set(" ".join(PROMISED.values()).split())
    here = {name for name, value in vars(ours).items() if inspect.isfunction(value)}
    reports = {"get_compiler_version", "get_compiling_cuda_version"}
    assert here - {"__getattr__", "missing_operator"} == promised | reports
    assert promised | reports <= find_asked()


def test_the_readme_lists_the_promised_operators():
    table = (ROOT / "README.md").read_text().split("## Operators")[1].split("## ")[0]
    cells = [row.split("|")[1] for row in table.splitlines() if row.startswith("| `")]
    # In brackets: other names of the same operators.
    names = re.findall(r"`(\w+)`", re.sub(r"\(.*?\)|`Pack`s", "", " ".join(cells)))
    assert sorted(names) == sorted(PROMISED)
    assert all(hasattr(mmcv.ops, name) for name in names)


def test_every_other_name_that_mmcv_asks_for_is_a_stand_in(ours):
    for name in find_asked() - vars(ours).keys():
        with pytest.raises(NotImplementedError, match=f"'{name}'"):
            getattr(ours, name)()


def test_a_missing_operator_names_its_caller_and_the_fix(ours):
    from mmcv.ops import box_iou_rotated

    boxes = torch.tensor([[1.0, 1.0, 2.0, 2.0, 0.1]])
    with pytest.raises(NotImplementedError) as raised:
        box_iou_rotated(boxes, boxes)
    message = str(raised.value)
    assert message.startswith(
        "mmcv.ops.box_iou_rotated needs mmcv's operator 'box_iou_rotated', which "
        "ravlt-mmops does not have: run pip uninstall mmcv-lite ravlt-mmops, then"
    )
    assert "\n" not in message


def test_python_finds_nothing_that_is_no_operator(ours):
    with pytest.raises(AttributeError):
        ours.__path__  # noqa: B018


def test_versions_for_reports(ours):
    from mmcv.ops import get_compiler_version, get_compiling_cuda_version

    assert re.fullmatch(r"ravlt-mmops \S+ on torchvision \S+", get_compiler_version())
    # torchvision, too, asks for the same major version only.
    expected = (torch.version.cuda or "not available").partition(".")[0]
    assert get_compiling_cuda_version().partition(".")[0] == expected


def test_a_compiled_module_wins(tmp_path):
    """What this package puts into mmcv's folder does not hide a compiled module."""
    package = tmp_path / "mmcv"
    shutil.copytree(ROOT / "src" / "mmcv", package)
    (package / "__init__.py").touch()
    code = "import importlib.util as u; print(u.find_spec('mmcv._ext').origin)"

    def find() -> str:
        line = [sys.executable, "-c", code]
        return subprocess.check_output(line, cwd=tmp_path, text=True).strip()

    assert find() == str(package / "_ext.py")
    compiled = package / f"_ext{EXTENSION_SUFFIXES[0]}"
    compiled.touch()
    assert find() == str(compiled)
