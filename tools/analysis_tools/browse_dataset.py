#!/usr/bin/env python
"""Draw the images of a config's data set with their labels, after the pipeline.

This serves both hosts; mmseg 1.2's own tool fails with current versions of OpenCV.
"""

import argparse
import os

from mmengine.registry import DATASETS, VISUALIZERS, init_default_scope

import ravlt  # noqa: F401 (registers what configs name)
from ravlt.config import load_config
from ravlt.errors import RAVLTError
from ravlt.training.cli import run_cli, use_data_root


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config", help="config file, or mmdet::... / mmseg::...")
    parser.add_argument("out", help="new folder for the pictures")
    parser.add_argument("--data-root", help="folder of the data set")
    parser.add_argument("--split", choices=["train", "val", "test"], default="train")
    parser.add_argument("--number", type=int, default=20, help="images; default: 20")
    return parser.parse_args()


def drawable(sample):
    """Return a sample with arrays in place of mmdet's box and mask classes."""
    sample = sample.numpy()
    instances = sample.get("gt_instances")
    if instances is not None:
        if hasattr(instances.bboxes, "tensor"):
            instances.bboxes = instances.bboxes.tensor
        if hasattr(instances.get("masks"), "to_ndarray"):
            instances.masks = instances.masks.to_ndarray().astype(bool)
    return sample


def main() -> None:
    args = parse_args()
    if os.path.exists(args.out):
        raise RAVLTError(f"'{args.out}' exists; name a new folder.")
    cfg = load_config(args.config)
    use_data_root(cfg, args)
    init_default_scope(cfg.get("default_scope", "mmdet"))
    dataset = DATASETS.build(cfg[f"{args.split}_dataloader"].dataset)
    visualizer = VISUALIZERS.build(cfg.visualizer)
    visualizer.dataset_meta = dataset.metainfo
    os.makedirs(args.out)
    digits = len(str(args.number))
    for i in range(min(args.number, len(dataset))):
        item = dataset[i]
        sample = item["data_samples"]
        # BGR to RGB. OpenCV draws only on contiguous arrays.
        image = item["inputs"].flip(0).permute(1, 2, 0).contiguous().numpy()
        name = os.path.splitext(os.path.basename(sample.img_path))[0]
        visualizer.add_datasample(
            name,
            image,
            drawable(sample),
            draw_pred=False,
            out_file=os.path.join(args.out, f"{i:0{digits}}_{name}.png"),
        )
    print(f"{min(args.number, len(dataset))} of {len(dataset)} images in {args.out}")


if __name__ == "__main__":
    run_cli(main)
