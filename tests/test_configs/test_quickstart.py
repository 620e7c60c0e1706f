"""The quickstart configs fit together, and what they reached is recorded once."""

import copy
import re
import runpy

import pytest
import torch
import yaml
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, DefaultScope

from helpers.paper_configs import load, name_of
from helpers.tool_runs import ROOT

FOLDER = ROOT / "configs/quickstart"
PATHS = sorted(FOLDER.glob("*.py"))
RECORDED = yaml.safe_load((FOLDER / "metafile.yml").read_text())["Models"]


@pytest.mark.integration
@pytest.mark.parametrize("path", PATHS, ids=name_of)
def test_classes_and_channels_agree(path):
    cfg = load(path)
    classes = len(cfg.train_dataloader.dataset.metainfo.classes)
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        model = MODELS.build(cfg.model).eval()
    with torch.inference_mode():
        maps = model.extract_feat(torch.zeros(1, 3, 64, 96))
    sides = [(64 // s, -(-96 // s)) for s in (4, 8, 16, 32, 64)]
    assert [tuple(m.shape[-2:]) for m in maps] == sides[: len(maps)]
    if cfg.default_scope == "mmdet":
        heads = [model.roi_head.bbox_head, model.roi_head.mask_head]
        strides = model.rpn_head.prior_generator.strides
        assert strides == [(64 // m.shape[-2],) * 2 for m in maps]
    else:
        heads = [model.decode_head]
    assert [head.num_classes for head in heads] == [classes] * len(heads)


@pytest.mark.integration
@pytest.mark.parametrize("path", PATHS, ids=name_of)
def test_norms_biases_and_layer_scales_do_not_decay(path):
    cfg = copy.deepcopy(load(path))
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        model = MODELS.build(cfg.model)
        optimizer = build_optim_wrapper(model, cfg.optim_wrapper).optimizer
    names = {p: name for name, p in model.named_parameters()}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            name = names.pop(parameter)
            exempt = parameter.ndim == 1 or "gamma_" in name
            assert group["weight_decay"] == (0 if exempt else 0.05), name
    assert not names


@pytest.mark.parametrize("entry", RECORDED, ids=lambda entry: entry["Name"])
def test_readme_says_the_same(entry):
    rows = (FOLDER / "README.md").read_text().splitlines()
    (row,) = (r for r in rows if r.startswith(f"| [{entry['Name']}]"))
    metrics = [v for r in entry["Results"] for v in r["Metrics"].values()]
    assert re.findall(r"\b0\.\d{3}\b", row) == [f"{v / 100:.3f}" for v in metrics]


def test_the_closing_table_reads_the_metafile():
    tool = runpy.run_path(str(ROOT / "tools/quickstart.py"))
    baselines = [e for e in RECORDED if e["Name"] in tool["BASELINES"]]
    assert len(baselines) == len(tool["RUNS"])
    for heading in tool["METRICS"]:
        (value,) = (
            result["Metrics"][heading]
            for entry in baselines
            for result in entry["Results"]
            if heading in result["Metrics"]
        )
        assert tool["read_baseline"]()[heading] == pytest.approx(value / 100)
