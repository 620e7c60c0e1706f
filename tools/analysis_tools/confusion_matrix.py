#!/usr/bin/env python
"""Draw the confusion matrix of a segmentor from the predictions of tools/test.py.

mmseg 1.2's own tool subtracts 1 from labels from which its loader has already
subtracted it (ADE20K). For detectors, use mmdet's tool with the .pkl file of
``tools/test.py --out``.
"""

import argparse
import os
from pathlib import Path

import numpy as np
from mmengine.registry import DATASETS, init_default_scope
from PIL import Image

import ravlt  # noqa: F401 (registers what configs name)
from ravlt.analysis.confusion import count_confusion, draw_confusion
from ravlt.config import is_segmentation, load_config
from ravlt.errors import RAVLTError
from ravlt.training.cli import run_cli, use_data_root


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config", help="config of a segmentor")
    parser.add_argument("predictions", help="folder that tools/test.py --out wrote")
    parser.add_argument("out", help="new image file, e.g. confusion.png")
    parser.add_argument("--data-root", help="folder of the data set")
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    if os.path.exists(args.out):
        raise RAVLTError(f"'{args.out}' exists; name another file or remove it.")
    cfg = load_config(args.config)
    if not is_segmentation(cfg):
        raise RAVLTError(f"'{args.config}' is not a segmentor's; use mmdet's own tool.")
    use_data_root(cfg, args)
    init_default_scope("mmseg")
    dataset = DATASETS.build(cfg.test_dataloader.dataset)
    classes = dataset.metainfo["classes"]
    counts = np.zeros((len(classes), len(classes)), np.int64)
    for i in range(len(dataset)):
        sample = dataset[i]["data_samples"]
        path = Path(args.predictions, Path(sample.img_path).stem + ".png")
        if not path.is_file():
            raise RAVLTError(f"'{path}' is missing; run tools/test.py --out again.")
        # With reduce_zero_label, mmseg writes predicted classes plus 1.
        predicted = np.asarray(Image.open(path)).astype(np.int64)
        predicted -= bool(sample.reduce_zero_label)
        labels = sample.gt_sem_seg.data.squeeze(0).numpy()
        counts += count_confusion(predicted, labels, len(classes), dataset.ignore_index)
    draw_confusion(args.out, counts, classes)
    right = np.diag(counts)
    union = counts.sum(0) + counts.sum(1) - right
    print(f"mIoU {np.nanmean(right / np.where(union, union, np.nan)):.4f}: {args.out}")


if __name__ == "__main__":
    run_cli(main)
