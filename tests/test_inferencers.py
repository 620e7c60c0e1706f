"""The hosts' inferencers and demos read the config that training leaves behind."""

from pathlib import Path

import cv2
import numpy as np
import pytest
from mmcv.transforms import Compose
from mmdet.apis import DetInferencer, inference_detector, init_detector
from mmseg.apis import MMSegInferencer, inference_model, init_model

from helpers.tool_runs import Trained

pytestmark = pytest.mark.integration


@pytest.fixture
def path(shapes) -> str:
    return str(shapes / "images/validation/000001.jpg")


@pytest.fixture
def pixels(path) -> np.ndarray:
    return cv2.imread(path)


def left_by(run: Trained) -> tuple[str, str]:
    """Return the config and the weights in a run's work directory."""
    return str(run.work / run.config.name), str(run.work / "iter_4.pth")


def boxes(result) -> np.ndarray:
    found = result.pred_instances.bboxes.numpy()
    assert len(found)
    return found


@pytest.fixture
def detector(det_run):
    config, weights = left_by(det_run)
    options = {"model.test_cfg.rcnn.score_thr": 0.0}  # four steps teach it little
    return init_detector(config, weights, device="cpu", cfg_options=options)


def test_inference_detector(detector, path, pixels):
    expected = boxes(inference_detector(detector, path))
    np.testing.assert_array_equal(boxes(inference_detector(detector, pixels)), expected)
    # As mmdet's demo of large images does with the slices of one.
    for result in inference_detector(detector, [pixels, pixels]):
        np.testing.assert_array_equal(boxes(result), expected)


def test_mmdet_video_demo(detector, path, pixels):
    """Its steps: the first transform is retyped, mmcv composes the pipeline."""
    expected = boxes(inference_detector(detector, path))
    pipeline = detector.cfg.test_dataloader.dataset.pipeline
    pipeline[0].type = "mmdet.LoadImageFromNDArray"
    frame = inference_detector(detector, pixels, test_pipeline=Compose(pipeline))
    np.testing.assert_array_equal(boxes(frame), expected)


def test_det_inferencer(det_run, path, pixels):
    inferencer = DetInferencer(*left_by(det_run), device="cpu", show_progress=False)
    of_path, of_pixels = inferencer([path, pixels])["predictions"]
    assert len(of_path["scores"]) and of_path == of_pixels


def test_inference_model(seg_run, path, pixels):
    model = init_model(*left_by(seg_run), device="cpu")
    expected = inference_model(model, path).pred_sem_seg.data.numpy()
    assert expected.shape == (1, *pixels.shape[:2])
    for result in (inference_model(model, pixels), *inference_model(model, [pixels])):
        np.testing.assert_array_equal(result.pred_sem_seg.data.numpy(), expected)


def test_mmseg_inferencer(seg_run, path, pixels):
    inferencer = MMSegInferencer(*left_by(seg_run), device="cpu")
    of_path, of_pixels = inferencer([path, pixels])["predictions"]
    assert of_path.shape == pixels.shape[:2]
    np.testing.assert_array_equal(of_path, of_pixels)


@pytest.mark.parametrize("name", ["seg_run", "det_run"])
def test_data_checks_stay_out_of_the_config(name, request):
    run = request.getfixturevalue(name)
    texts = [path.read_text() for path in Path(run.work).rglob("*.py")]
    assert texts and not any("VerifyImages" in text for text in texts)
