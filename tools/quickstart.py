#!/usr/bin/env python
"""Train and evaluate a small detector and a small segmentor on the built-in data set.

This generates the images, trains Mask R-CNN and Semantic FPN from scratch on a small
all-linear RAVLT, saves pictures of the predictions and prints one table. An interrupted
run continues where it stopped.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import yaml

from ravlt.data.shapes import write_shapes
from ravlt.errors import RAVLTError
from ravlt.training.cli import run_cli

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = ROOT / "configs" / "quickstart"
RUNS = {
    "detector": "mask-rcnn_ravlt-mini_fpn_shapes.py",
    "segmentor": "fpn_ravlt-mini_shapes.py",
}
# By heading: the model, the evaluator's key, and its value for a perfect result.
METRICS = {
    "box AP": ("detector", "coco/bbox_mAP", 1),
    "mask AP": ("detector", "coco/segm_mAP", 1),
    "mIoU": ("segmentor", "mIoU", 100),
}
BASELINES = ("mask-rcnn_r18_fpn_shapes", "fpn_r18_shapes")


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--data-root", default="data/shapes", help="folder for the images"
    )
    parser.add_argument(
        "--work-dir", default="work_dirs/quickstart", help="folder for the results"
    )
    return parser.parse_args()


def run_tool(tool: str, *args: str) -> None:
    """Run a tool in a process of its own.

    Raises:
        RAVLTError: If it fails.
    """
    command = [sys.executable, str(ROOT / "tools" / tool), *args]
    if subprocess.run(command).returncode:
        raise RAVLTError(f"tools/{tool} failed; see its error above.")


def train_and_evaluate(name: str, data_root: str, work_dir: Path) -> dict[str, float]:
    """Train a model, or continue its training, and return its metrics."""
    config = str(CONFIGS / RUNS[name])
    folder = work_dir / name
    run_tool(
        *("train.py", config, "--data-root", data_root),
        *("--work-dir", str(folder), "--resume"),
    )
    checkpoint = (folder / "last_checkpoint").read_text()
    run_tool(
        *("test.py", config, checkpoint, "--data-root", data_root),
        *("--work-dir", str(folder / "test"), "--show-dir", str(folder / "pictures")),
    )
    newest = max((folder / "test").glob("*/*.json"), key=lambda p: p.stat().st_mtime)
    return json.loads(newest.read_text())


def read_baseline() -> dict[str, float]:
    """Return the recorded metrics of the same heads on a ResNet-18."""
    models = yaml.safe_load((CONFIGS / "metafile.yml").read_text())["Models"]
    return {
        heading: value / 100
        for model in models
        if model["Name"] in BASELINES
        for result in model["Results"]
        for heading, value in result["Metrics"].items()
    }


def main() -> None:
    args = parse_args()
    baseline = read_baseline()
    start = time.time()
    print(f"Writing the data set to {args.data_root}, unless it is there.")
    write_shapes(args.data_root, num_train=900, num_val=150)
    work_dir = Path(args.work_dir)
    results = {
        name: train_and_evaluate(name, args.data_root, work_dir) for name in RUNS
    }
    rows = {
        "RAVLT, this run": [
            results[name][key] / unit for name, key, unit in METRICS.values()
        ],
        "ResNet-18, recorded": [baseline[heading] for heading in METRICS],
    }

    print(f"\nOn the held-out images of {args.data_root}:")
    print(f"{'':<22}" + "".join(f"{heading:>9}" for heading in METRICS))
    for label, values in rows.items():
        print(f"{label:<22}" + "".join(f"{value:>9.3f}" for value in values))
    print(f"Time: {(time.time() - start) / 60:.1f} min.")
    print(f"Predictions: {work_dir}/*/pictures  Curves: {work_dir}/*/curves.png")


if __name__ == "__main__":
    run_cli(main)
