"""Every config's model, shrunken, works: it trains, predicts, and repeats itself."""

import copy
import math
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from mmengine.config import ConfigDict
from mmengine.registry import MODELS
from torch import Tensor

from helpers.paper_configs import (
    Case,
    flat_tensors,
    make_inputs,
    name_of,
    paths_of,
    shrunken,
)
from ravlt.models.archs import ARCHS

pytestmark = pytest.mark.integration


def test_loss_reaches_every_parameter(case):
    run = _run(case)
    losses = {k: sum(flat_tensors(value)).item() for k, value in run.losses.items()}
    assert all(math.isfinite(value) for value in losses.values()), losses
    # Untrained classifiers are undecided between their classes; RetinaNet's is not.
    name, classes = {
        "retinanet": ("loss_cls", None),
        "mask-rcnn": ("loss_cls", 81),
        "cascade-mask-rcnn": ("s0.loss_cls", 81),
        "fpn": ("decode.loss_ce", 150),
        "upernet": ("decode.loss_ce", 150),
    }[case.name["method"]]
    assert losses[name] > 0
    if classes:
        assert losses[name] == pytest.approx(math.log(classes), rel=0.1)
    if "aux.loss_ce" in losses:
        assert losses["aux.loss_ce"] == pytest.approx(0.4 * math.log(150), rel=0.1)
    assert run.without_gradient == []  # DDP stops at the first of these
    assert run.bad_gradient == []


def test_predictions_are_valid(case):
    run = _run(case)
    assert len(run.predictions) == 2
    for sample in run.predictions:
        height, width = sample.ori_shape
        if case.name["dataset"] == "ade20k":
            labels = sample.pred_sem_seg.data
            assert labels.shape == (1, height, width)
            assert labels.min() >= 0
            assert labels.max() < 150
            continue
        found = sample.pred_instances
        assert len(found) > 0
        x1, y1, x2, y2 = found.bboxes.unbind(1)
        x_max, y_max = width / sample.scale_factor[0], height / sample.scale_factor[1]
        assert ((x1 >= 0) & (x1 <= x2) & (x2 <= x_max + 1e-3)).all()
        assert ((y1 >= 0) & (y1 <= y2) & (y2 <= y_max + 1e-3)).all()
        assert ((found.labels >= 0) & (found.labels < 80)).all()
        assert ((found.scores >= 0) & (found.scores <= 1)).all()
        if "mask" in case.name["method"]:
            assert found.masks.shape == (len(found), height, width)
            assert found.masks.dtype == torch.bool


def test_tensors_have_the_right_shapes_and_repeat(case):
    run = _run(case)
    shapes = [tuple(t.shape) for t in run.tensors]
    height, width = run.input_size
    if case.name["dataset"] == "ade20k":
        assert shapes == [(2, 150, -(-height // 4), -(-width // 4))]
        logits = F.interpolate(run.tensors[0], (height, width), mode="bilinear")
        for sample, expected in zip(run.predictions, logits.argmax(1), strict=True):
            assert torch.equal(sample.pred_sem_seg.data[0], expected)
    elif case.name["method"] == "retinanet":
        grids = [(-(-height // s), -(-width // s)) for s in (8, 16, 32, 64, 128)]
        assert shapes == [(2, 9 * 80, *g) for g in grids] + [
            (2, 9 * 4, *g) for g in grids
        ]
    else:
        # Of the 20 proposals an image, Mask R-CNN gives one tensor, Cascade one each.
        parts = {"mask-rcnn": [40], "cascade-mask-rcnn": [20, 20]}[case.name["method"]]
        outputs = [(81,), (80 * 4,), (80, 28, 28)]
        assert shapes == [(rois, *output) for output in outputs for rois in parts]
    assert all(t.isfinite().all() for t in run.tensors)
    for first, second in zip(run.tensors, run.tensors_again, strict=True):
        assert torch.equal(first, second)


@pytest.mark.parametrize("case", paths_of("retinanet"), indirect=True, ids=name_of)
def test_retinanet_pyramid_is_the_released_one(case):
    """Theirs takes four stages and leaves the first; ours does not make the first."""
    assert case.cfg.model.neck.start_level == 0
    dims = list(ARCHS[case.name["size"]]["embed_dims"])
    ours = MODELS.build(case.cfg.model.neck)
    theirs = MODELS.build(
        {**case.cfg.model.neck, "in_channels": dims, "start_level": 1}
    )
    theirs.load_state_dict(ours.state_dict())
    maps = [torch.rand(1, dim, 16 >> i, 24 >> i) for i, dim in enumerate(dims)]
    for our, their in zip(ours(maps[1:]), theirs(maps), strict=True):
        assert torch.equal(our, their)


@dataclass
class Run:
    """What a shrunken model gave in each of its modes."""

    losses: dict
    without_gradient: list[str]
    bad_gradient: list[str]
    predictions: list
    tensors: list[Tensor]
    tensors_again: list[Tensor]
    input_size: tuple[int, int]


_RUNS: dict[str, Run] = {}


def _run(case: Case) -> Run:
    """Runs the three modes; sizes that shrink to the same model share the result."""
    cfg = shrunken(case.cfg.model)
    key = str(cfg.to_dict())
    if key not in _RUNS:
        _RUNS[key] = _run_modes(cfg, case.name["dataset"])
    return _RUNS[key]


def _run_modes(cfg: ConfigDict, dataset: str) -> Run:
    torch.manual_seed(0)
    model = MODELS.build(cfg)
    model.init_weights()

    model.train()
    batch = model.data_preprocessor(make_inputs(dataset), training=True)
    losses = model(**batch, mode="loss")
    model.parse_losses(losses)[0].backward()
    grads = {name: p.grad for name, p in model.named_parameters()}

    model.eval()
    batch = model.data_preprocessor(make_inputs(dataset), training=False)
    with torch.no_grad():
        tensors, tensors_again = (
            flat_tensors(model(**copy.deepcopy(batch), mode="tensor")) for _ in range(2)
        )
        predictions = model(**copy.deepcopy(batch), mode="predict")
    return Run(
        losses=losses,
        without_gradient=[n for n, g in grads.items() if g is None],
        bad_gradient=[
            n for n, g in grads.items() if g is not None and not g.isfinite().all()
        ],
        predictions=predictions,
        tensors=tensors,
        tensors_again=tensors_again,
        input_size=tuple(batch["inputs"].shape[-2:]),
    )
