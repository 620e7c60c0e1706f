#!/usr/bin/env python
"""Measure ranks of KV buffers and attention outputs, layer by layer, on images."""

import argparse
import os
import sys

import torch

from ravlt.analysis.attention.rank_report import (
    attention_table,
    rank_table,
    write_study,
)
from ravlt.analysis.attention.rank_study import find_images, load_subject, study
from ravlt.errors import RAVLTError
from ravlt.training.cli import run_cli


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "config",
        help="config file, mmdet::... / mmseg::..., or ravlt_t[:rala] (any size and "
        "attention)",
    )
    parser.add_argument("images", help="folder of images")
    parser.add_argument("--checkpoint", help="weights; default: random, seed 0")
    parser.add_argument(
        "--size",
        type=int,
        nargs=2,
        default=[224, 224],
        metavar=("H", "W"),
        help="size to which images are resized, without keeping their aspect ratio",
    )
    parser.add_argument("--out", help="new folder for CSV, JSON and figures")
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    if args.out and os.path.exists(args.out):
        raise RAVLTError(f"--out '{args.out}' exists; name a new folder.")
    if min(args.size) < 1:
        raise RAVLTError(f"--size has {min(args.size)}; give positive numbers.")
    size = tuple(args.size)
    images = find_images(args.images)
    torch.manual_seed(0)
    found = study(load_subject(args.config, size, args.checkpoint), images, size)
    weights = args.checkpoint or "random weights, seed 0"
    print(f"{args.config}, {weights}, {len(images)} images of {size[0]} x {size[1]}")
    print("\nEffective rank, mean of heads / over all heads:\n")
    print(rank_table(found))
    print("\nRows of attention; entropy over that of uniform rows:\n")
    print(attention_table(found))
    if args.out:
        about = dict(
            config=args.config,
            weights=weights,
            size=size,
            images=len(images),
            torch=torch.__version__,
            command=" ".join(["python", *sys.argv]),
        )
        write_study(args.out, found, about)


if __name__ == "__main__":
    run_cli(main)
