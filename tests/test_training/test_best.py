"""The metric of the best checkpoint is one that the evaluation returns."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmdet.evaluation import metrics as det
from mmdet.registry import METRICS
from mmengine.config import Config
from mmseg.evaluation import metrics as seg
from pycocotools import mask as coco_mask

from helpers.tool_runs import DET, read_scalars, train
from ravlt.training.checkpoints.best import best_metric

CLASSES = ("cat", "dog")
BOX = [2.0, 2.0, 12.0, 12.0]


def chosen(*evaluators: dict, scope: str = "mmdet") -> str | None:
    return best_metric(Config(dict(val_evaluator=evaluators, default_scope=scope)))


def evaluate(metric, *results) -> dict:
    metric.dataset_meta = dict(classes=CLASSES, thing_classes=CLASSES)
    metric.results = list(results)
    return metric.evaluate(len(results))


@pytest.fixture
def annotations(tmp_path) -> str:
    x, y, right, bottom = BOX
    box = [x, y, right - x, bottom - y]
    corners = [x, y, right, y, right, bottom, x, bottom]
    path = tmp_path / "annotations.json"
    path.write_text(
        json.dumps(
            dict(
                images=[dict(id=1, file_name="1.jpg", height=16, width=16)],
                categories=[dict(id=i, name=n) for i, n in enumerate(CLASSES, 1)],
                annotations=[
                    dict(
                        id=1,
                        image_id=1,
                        category_id=1,
                        bbox=box,
                        segmentation=[corners],
                        area=100.0,
                        iscrowd=0,
                    )
                ],
            )
        )
    )
    return str(path)


def detection() -> tuple[dict, dict]:
    """A ground truth and a prediction, as CocoMetric collects them."""
    mask = np.zeros((16, 16, 1), np.uint8, order="F")
    mask[2:12, 2:12] = 1
    return dict(img_id=1, height=16, width=16), dict(
        img_id=1,
        bboxes=np.array([BOX]),
        scores=np.array([0.9]),
        labels=np.array([0]),
        masks=coco_mask.encode(mask),
    )


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, "coco/bbox_mAP"),
        (dict(metric="bbox"), "coco/bbox_mAP"),
        (dict(metric="segm"), "coco/segm_mAP"),
        (dict(metric=["bbox", "segm"]), "coco/bbox_mAP"),
        (dict(metric=["segm", "bbox"]), "coco/segm_mAP"),
        (dict(metric="bbox", classwise=True), "coco/bbox_mAP"),
        (dict(metric="proposal"), "coco/AR@1000"),
        (dict(metric="proposal_fast"), "coco/AR@1000"),
        (dict(metric="proposal_fast", proposal_nums=(1, 10, 100)), "coco/AR@100"),
        (dict(metric="bbox", metric_items=["mAP_50", "mAP"]), "coco/bbox_mAP"),
        (dict(metric="segm", prefix="val"), "val/segm_mAP"),
        (dict(metric="bbox", metric_items=["mAP_50"]), None),
        (dict(metric="proposal", metric_items=["AR@100"]), None),
    ],
)
def test_coco(annotations, settings, expected):
    assert chosen(dict(type="CocoMetric", **settings)) == expected
    returned = evaluate(det.CocoMetric(annotations, **settings), detection())
    assert returned and (expected is None or expected in returned)


@pytest.mark.parametrize("kind", ["mmseg.IoUMetric", "mmdet.SemSegMetric"])
@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, "mIoU"),
        (dict(iou_metrics="mDice"), "mDice"),
        (dict(iou_metrics=["mDice"]), "mDice"),
        (dict(iou_metrics=["mFscore"]), "mFscore"),
        (dict(iou_metrics=["mIoU", "mDice", "mFscore"]), "mIoU"),
        (dict(iou_metrics=["mFscore"], prefix="val"), "val/mFscore"),
    ],
)
def test_segmentation(kind, settings, expected):
    scope, _, name = kind.partition(".")
    assert chosen(dict(type=kind, **settings), scope=scope) == expected
    metric = getattr(seg if scope == "mmseg" else det, name)(**settings)
    metric.dataset_meta = dict(classes=CLASSES)
    labels = torch.tensor([[0, 1], [1, 1]])
    key = "data" if scope == "mmseg" else "sem_seg"
    metric.process({}, [{k: {key: labels} for k in ("pred_sem_seg", "gt_sem_seg")}])
    assert metric.evaluate(1)[expected] == 100


def test_voc():
    settings = dict(type="VOCMetric", metric="mAP")
    truth = dict(
        bboxes=np.array([BOX]),
        labels=np.array([0]),
        bboxes_ignore=np.zeros((0, 4)),
        labels_ignore=np.zeros(0),
    )
    found = [np.array([[*BOX, 0.9]]), np.zeros((0, 5))]
    returned = evaluate(det.VOCMetric(metric="mAP"), (truth, found))
    assert chosen(settings) == "pascal_voc/mAP" in returned
    assert chosen(settings | dict(metric="recall")) is None


def test_open_images():
    truth = dict(
        gt_bboxes=np.array([BOX]),
        gt_labels=np.array([0]),
        bboxes=np.array([BOX]),
        labels=np.array([0]),
        bboxes_ignore=np.zeros((0, 4)),
        labels_ignore=np.zeros(0),
        gt_is_group_ofs=np.array([False]),
    )
    found = [np.array([[*BOX, 0.9]]), np.zeros((0, 5))]
    returned = evaluate(det.OpenImagesMetric(), (truth, found))
    assert chosen(dict(type="OpenImagesMetric")) == "openimages/mAP" in returned


# The next four need packages that are not installed here: these stand in for what the
# packages compute, and the hosts' code names the metrics.


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (dict(metric="bbox"), "lvis/bbox_AP"),
        (dict(metric=["segm", "bbox"]), "lvis/segm_AP"),
        (dict(metric="proposal"), "lvis/AR@300"),
        (dict(metric="bbox", metric_items=["AP50"]), None),
    ],
)
def test_lvis(annotations, monkeypatch, settings, expected):
    class Evaluation:
        def __init__(self, *args) -> None:
            self.params = SimpleNamespace()

        def get_results(self) -> dict:
            names = ("AP", "AP50", "AP75", "APs", "APm", "APl", "APr", "APc", "APf")
            recalls = ("AR@300", "ARs@300", "ARm@300", "ARl@300")
            return dict.fromkeys(names + recalls, 0.5)

        evaluate = accumulate = summarize = print_results = lambda self: None

    class Annotations:
        def __init__(self, path) -> None:
            self.cats = {}

        get_cat_ids = get_img_ids = lambda self: [1]

    module = "mmdet.evaluation.metrics.lvis_metric"
    monkeypatch.setattr(f"{module}.lvis", SimpleNamespace(__version__="10.5.3"))
    monkeypatch.setattr(f"{module}.LVIS", Annotations, raising=False)
    monkeypatch.setattr(f"{module}.LVISEval", Evaluation, raising=False)
    monkeypatch.setattr(f"{module}.LVISResults", lambda *_: None, raising=False)
    assert chosen(dict(type="LVISMetric", **settings)) == expected
    returned = evaluate(det.LVISMetric(annotations, **settings), detection())
    assert returned and (expected is None or expected in returned)


def test_panoptic(monkeypatch):
    class Qualities:
        __iadd__ = __add__ = lambda self, other: self

        def pq_average(self, categories, isthing) -> tuple[dict, dict]:
            return dict(pq=0.5, sq=0.5, rq=0.5, n=1), {}

    module = "mmdet.evaluation.metrics.coco_panoptic_metric"
    monkeypatch.setattr(f"{module}.panopticapi", object())
    monkeypatch.setattr(f"{module}.PQStat", Qualities)
    returned = evaluate(det.CocoPanopticMetric(), None)
    assert chosen(dict(type="CocoPanopticMetric")) == "coco_panoptic/PQ" in returned


def test_cityscapes_of_mmdet(tmp_path, monkeypatch):
    averages = {"averages": {"allAp": 0.5, "allAp50%": 0.5}}
    script = SimpleNamespace(args=SimpleNamespace())
    module = "mmdet.evaluation.metrics.cityscapes_metric"
    monkeypatch.setattr(f"{module}.CSEval", script, raising=False)
    monkeypatch.setattr(
        f"{module}.evaluateImgLists", lambda *_, **__: averages, raising=False
    )
    monkeypatch.setattr(f"{module}.HAS_CITYSCAPESAPI", True, raising=False)
    settings = dict(outfile_prefix=str(tmp_path / "out"), seg_prefix="gt")
    returned = evaluate(
        det.CityScapesMetric(**settings), (dict(file_name=""), dict(pred_txt=""))
    )
    kind = "CityScapesMetric"
    assert chosen(dict(type=kind, **settings)) == "cityscapes/mAP" in returned


def test_cityscapes_of_mmseg(tmp_path, monkeypatch):
    averages = dict(averageScoreCategories=0.5, averageScoreInstCategories=0.5)
    script = SimpleNamespace(
        args=SimpleNamespace(), evaluateImgLists=lambda *_: averages
    )
    monkeypatch.setattr("mmseg.evaluation.metrics.citys_metric.CSEval", script)
    returned = evaluate(seg.CityscapesMetric(str(tmp_path)), ("", ""))
    key = chosen(dict(type="CityscapesMetric", output_dir="out"), scope="mmseg")
    assert key == "averageScoreCategories" in returned


# -------------------------------------------------------------------- which evaluator


class _SameCocoMetric(det.CocoMetric):
    """Collects in a way of its own, and returns the same metrics."""

    def process(self, *args) -> None:
        super().process(*args)


class _OtherCocoMetric(det.CocoMetric):
    def compute_metrics(self, results) -> dict:
        return {"own": 1.0}


class _FixedCocoMetric(det.CocoMetric):
    def __init__(self, **kwargs) -> None:
        super().__init__(metric="segm", **kwargs)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        (_SameCocoMetric, "coco/segm_mAP"),
        (_OtherCocoMetric, None),
        (_FixedCocoMetric, None),
    ],
)
@pytest.mark.parametrize("by", ["class", "name"])
def test_metrics_that_inherit(kind, expected, by, monkeypatch):
    if by == "name":
        monkeypatch.setitem(METRICS.module_dict, kind.__name__, kind)
        kind = kind.__name__
    assert chosen(dict(type=kind, metric="segm")) == expected


def test_names_as_a_dumped_config_of_classes_has_them():
    kind = "mmdet.evaluation.metrics.coco_metric.CocoMetric"
    assert chosen(dict(type=kind, metric="segm")) == "coco/segm_mAP"


def test_the_first_evaluator_that_returns_something():
    coco = dict(type="CocoMetric", metric="segm")
    unscored = dict(type="CocoMetric", metric="bbox", format_only=True)
    dump = dict(type="DumpResults", out_file_path="out.pkl")
    iou = dict(type="mmseg.IoUMetric", iou_metrics=["mDice"])
    assert chosen(dump, unscored, coco, iou) == "coco/segm_mAP"
    assert chosen(iou, coco) == "mDice"
    for nothing in ([], [dump], [unscored], [dict(type="Unknown")]):
        assert chosen(*nothing) is None
    assert best_metric(Config(dict(val_evaluator=None))) is None


# ---------------------------------------------------------------------------- training


@pytest.mark.integration
def test_detector_without_box_metrics_keeps_its_best_and_resumes(tmp_path, shapes):
    def start(*args, iterations: int):
        options = {"val_evaluator.metric": "segm", "train_cfg.max_iters": iterations}
        options["model.test_cfg.rcnn.score_thr"] = 0.0  # something to evaluate
        line = [tmp_path, "--data-root", shapes, *args]
        return train(*line, config=DET, options=options).succeeded()

    start(iterations=2)
    assert list(tmp_path.glob("work/best_coco_segm_mAP_iter_*.pth"))
    start("--resume", iterations=4)
    steps = [r["step"] for r in read_scalars(tmp_path / "work") if "coco/segm_mAP" in r]
    assert steps == [2, 4]
