"""tools/test.py and what looks at data and predictions, as a user runs them."""

import os
import pickle
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from pycocotools.mask import decode

from helpers.tool_runs import DET, SEG, Run, read_metrics

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def evaluated(request, seg_run, det_run, shapes) -> dict[Path, dict]:
    """Runs test.py once for each host, with all of its outputs."""
    metrics = {}
    for run, out in ((seg_run, "out"), (det_run, "out.pkl")):
        run.test(shapes, "--out", out, "--show-dir", "shown").succeeded()
        metrics[run.config] = read_metrics(run.cwd)
    return metrics


def test_metric_is_that_of_training(trained, evaluated):
    during, after = trained.val(), evaluated[trained.config]
    names = {name for name in during if "time" not in name} - {"step"}
    assert trained.metric in names
    assert names == {name for name in after if "time" not in name}
    assert {n: after[n] for n in names} == {n: during[n] for n in names}


def test_deploy_gives_the_same_metrics(trained, evaluated, shapes):
    run = trained.test(shapes, "--deploy").succeeded()
    before, _ = run.out.split("Iter(test) ", 1)
    assert "weights: work/iter_4.pth" in before and "data: 4 images" in before
    assert "System environment" not in before
    (log,) = max(trained.cwd.glob("test*"), key=os.path.getmtime).glob("*/*.log")
    hooks = re.search(r"\nbefore_test:\n(.*?)\n -", log.read_text(), re.DOTALL)[1]
    assert "DeployHook" in hooks
    plain, folded = evaluated[trained.config], read_metrics(trained.cwd)
    names = {name for name in plain if "time" not in name}
    assert trained.metric in names
    assert {n: folded[n] for n in names} == {n: plain[n] for n in names}


def test_segmentation_out_gives_the_metric(seg_run, evaluated, shapes):
    paths = sorted((seg_run.cwd / "out").iterdir())
    assert [path.name for path in paths] == [f"{i:06d}.png" for i in range(1, 5)]
    both, either = np.zeros(6), np.zeros(6)
    for path in paths:
        # Both count from 1, as the label files of ADE20K do.
        predicted = np.array(Image.open(path))
        truth = np.array(Image.open(shapes / "annotations/validation" / path.name))
        for i in range(6):
            mine, true = predicted == i + 1, truth == i + 1
            both[i] += (mine & true).sum()
            either[i] += (mine | true).sum()
        assert predicted.min() >= 1 and predicted.max() <= 6
    expected = 100 * np.nanmean(both / either)
    assert expected > 0
    assert evaluated[SEG]["mIoU"] == pytest.approx(expected, abs=0.006)


def test_detection_out_gives_the_metric(det_run, evaluated, shapes, capsys):
    with (det_run.cwd / "out.pkl").open("rb") as file:
        items = pickle.load(file)
    assert sorted(item["img_id"] for item in items) == [1, 2, 3, 4]
    found = []
    for item in items:
        predicted = item["pred_instances"]
        assert len(predicted["masks"]) == len(predicted["bboxes"]) > 0
        for box, score, label in zip(
            predicted["bboxes"].tolist(),
            predicted["scores"].tolist(),
            predicted["labels"].tolist(),
            strict=True,
        ):
            size = [box[2] - box[0], box[3] - box[1]]
            found.append(
                {
                    "image_id": item["img_id"],
                    "category_id": label + 1,
                    "bbox": box[:2] + size,
                    "score": score,
                }
            )
    truth = COCO(shapes / "annotations/instances_validation.json")
    coco = COCOeval(truth, truth.loadRes(found), "bbox")
    coco.params.maxDets = [100, 300, 1000]  # mmdet's
    coco.evaluate()
    coco.accumulate()
    coco.summarize()
    for index, name in enumerate(("mAP", "mAP_50", "mAP_75")):
        expected = round(coco.stats[index], 3)
        assert evaluated[DET][f"coco/bbox_{name}"] == pytest.approx(expected)


def test_show_dir(trained, evaluated):
    suffix = ".jpg" if trained.config == DET else ".png"
    paths = sorted((trained.cwd / "shown").rglob(f"*{suffix}"))
    assert len(paths) == 4
    for path in paths:
        with Image.open(path) as image:
            # The truth beside the prediction.
            assert image.width in (64, 128)


def test_out_is_never_overwritten(trained, evaluated, shapes):
    out = "out" if trained.config == SEG else "out.pkl"
    before = {p: p.read_bytes() for p in trained.cwd.glob(f"{out}/*")}
    error = trained.test(shapes, "--out", out).error()
    assert error == f"error: --out '{out}' exists; name another place or remove it."
    assert before == {p: p.read_bytes() for p in trained.cwd.glob(f"{out}/*")}


def test_out_of_a_detector_is_a_pickle(det_run, shapes):
    error = det_run.test(shapes, "--out", "boxes.json").error()
    assert error.startswith("error: --out 'boxes.json' must end in .pkl")


def test_tta_segmentation(seg_run, shapes, evaluated):
    seg_run.test(shapes, "--tta", "--out", "tta").succeeded()
    assert len(list((seg_run.cwd / "tta").glob("*.png"))) == 4
    assert 0 < read_metrics(seg_run.cwd)["mIoU"] <= 100


NO_MASKS = {
    "model.roi_head.mask_head": None,
    "model.roi_head.mask_roi_extractor": None,
    "test_evaluator.metric": "bbox",
}


@pytest.mark.parametrize("options", [{}, NO_MASKS], ids=["masks", "boxes"])
def test_tta_detection(det_run, shapes, options):
    out = f"tta{len(options)}.pkl"
    det_run.test(shapes, "--tta", "--out", out, options=options).succeeded()
    with (det_run.cwd / out).open("rb") as file:
        items = pickle.load(file)
    assert sorted(item["img_id"] for item in items) == [1, 2, 3, 4]
    metrics = read_metrics(det_run.cwd)
    assert -1 <= metrics["coco/bbox_mAP"] <= 1
    assert ("coco/segm_mAP" in metrics) is (not options)
    filled = 0
    for item in items:
        found = item["pred_instances"]
        assert 0 < len(found["bboxes"]) <= 100
        assert ("masks" in found) is (not options)
        if options:
            continue
        # Turned back like their boxes, masks lie inside them.
        boxes = found["bboxes"].tolist()
        for box, mask in zip(boxes, found["masks"], strict=True):
            rows, columns = np.nonzero(decode(mask))
            assert ((columns >= box[0] - 1) & (columns <= box[2] + 1)).all()
            assert ((rows >= box[1] - 1) & (rows <= box[3] + 1)).all()
            filled += len(rows) > 0
    assert (filled > 0) is (not options)


def tool(name: str, *args, cwd: Path) -> Run:
    return Run(f"analysis_tools/{name}", [*args], cwd)


@pytest.mark.parametrize(("config", "split"), [(SEG, "train"), (DET, "val")])
def test_browsing_the_data(tmp_path, shapes, config, split):
    """Labels are drawn: the pictures differ from the images in many pixels."""
    args = ("browse_dataset.py", config, "out", "--data-root", shapes)
    args += ("--split", split, "--number", 2)
    tool(*args, cwd=tmp_path).succeeded()
    pictures = sorted((tmp_path / "out").glob("*.png"))
    assert len(pictures) == 2
    for picture in pictures:
        with Image.open(picture) as image:
            assert len(image.convert("RGB").getcolors(maxcolors=1 << 20)) > 50
    assert "'out' exists" in tool(*args, cwd=tmp_path).error()


def test_confusion_has_the_miou_of_the_test(seg_run, evaluated, shapes):
    args = ("confusion_matrix.py", SEG, "out", "confusion.png", "--data-root", shapes)
    run = tool(*args, cwd=seg_run.cwd).succeeded()
    found = float(re.search(r"mIoU (\S+):", run.out).group(1))
    assert found == pytest.approx(evaluated[SEG]["mIoU"] / 100, abs=2e-4)
    assert (seg_run.cwd / "confusion.png").is_file()
    refused = tool("confusion_matrix.py", DET, "out", "c.png", cwd=seg_run.cwd)
    assert "not a segmentor's; use mmdet's own tool" in refused.error()
