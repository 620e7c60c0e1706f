"""What checking images costs once they have passed.

RAVLT_PHOTOGRAPHS=data/coco/val2017 pytest -m slow tests/test_data/test_verify_cost.py
"""

import os
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
from mmengine.dataset import Compose
from mmengine.registry import TRANSFORMS

from ravlt.data.check.verify import VerifyImages

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    ("suffix", "size", "count"),
    [(".jpg", (480, 640), 60), (".png", (2160, 3840), 4)],
    ids=["JPEG 480 x 640", "PNG 2160 x 3840"],
)
def test_cost_on_generated_images(tmp_path, capsys, suffix, size, count):
    noise = np.random.default_rng(0).integers(
        0, 255, (size[0] // 8, size[1] // 8, 3), np.uint8
    )
    # Smooth, as photographs are: noise takes longer to decode.
    image = cv2.resize(noise, size[::-1])
    paths = [str(tmp_path / f"{index}{suffix}") for index in range(count)]
    for path in paths:
        cv2.imwrite(path, image)
    assert_cheap(paths, tmp_path, capsys)


def test_cost_on_photographs(tmp_path, capsys):
    folder = os.environ.get("RAVLT_PHOTOGRAPHS")
    if not folder:
        pytest.skip("RAVLT_PHOTOGRAPHS names no folder of images, such as val2017")
    paths = [str(path) for path in sorted(Path(folder).iterdir())][:200]
    assert_cheap(paths, tmp_path, capsys)


def assert_cheap(paths: list[str], folder: Path, capsys) -> None:
    """After the first epoch, the check takes at most 2 % of mmdet's loading."""
    passed, first, checking = str(folder / "passed"), [], []
    decoding, loading = [], []
    with TRANSFORMS.switch_scope_and_registry("mmdet"):
        steps = Compose(
            [
                dict(type="LoadImageFromFile"),
                dict(type="Resize", scale=(1333, 800), keep_ratio=True),
                dict(type="RandomFlip", prob=0.5),
                dict(type="PackDetInputs"),
            ]
        )
    for epoch in range(6):
        step = VerifyImages(passed=passed)
        for path in paths:
            times = [time.perf_counter()]
            results = step(dict(img_path=path, img_id=0))
            times.append(time.perf_counter())
            for transform in steps.transforms:
                results = transform(results)
                times.append(time.perf_counter())
            (checking if epoch else first).append(times[1] - times[0])
            decoding.append(times[2] - times[1])
            loading.append(times[-1] - times[1])
    first, later, decode, load = map(np.median, (first, checking, decoding, loading))
    with capsys.disabled():
        print(
            f"\nloading {1e3 * load:.1f} ms, of it decoding {1e3 * decode:.1f} ms; "
            f"checking {1e3 * first:.1f} ms in the first epoch, then "
            f"{1e6 * later:.0f} us: {later / load:.2%} of loading"
        )
    assert later <= 0.02 * load
