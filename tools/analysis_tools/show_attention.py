#!/usr/bin/env python
"""Show what one pixel attends to: rows of attention matrices, over the image."""

import argparse
import os
from pathlib import Path

import torch

from ravlt.analysis.attention.figure import draw_rows
from ravlt.analysis.attention.map import (
    HEADS,
    attention_of_pixel,
    combine_heads,
    describe,
    put_core,
)
from ravlt.analysis.attention.rank_study import load_subject, read_image
from ravlt.errors import RAVLTError
from ravlt.models.attention import CORES
from ravlt.training.cli import run_cli


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "config",
        nargs="+",
        help="config file, mmdet::... / mmseg::..., or ravlt_t[:rala] (any size and "
        "attention); each has a panel of its own",
    )
    parser.add_argument("--image", required=True, help="image file")
    parser.add_argument(
        "--pixel",
        type=int,
        nargs=2,
        required=True,
        metavar=("X", "Y"),
        help="column and row of the pixel, counted from 0",
    )
    parser.add_argument("--out", required=True, help="new .png file")
    parser.add_argument(
        "--checkpoint",
        nargs="+",
        default=[None],
        help="weights, one for all or one for each config; default: random, seed 0",
    )
    parser.add_argument(
        "--attentions",
        nargs="+",
        choices=CORES,
        default=[None],
        metavar="NAME",
        help="mechanisms to put into the layer, each with a panel of its own: "
        + ", ".join(CORES),
    )
    parser.add_argument(
        "--stage", type=int, default=1, help="stage of the layer, from 1"
    )
    parser.add_argument(
        "--block", type=int, default=1, help="block of the layer in its stage, from 1"
    )
    parser.add_argument(
        "--heads",
        choices=HEADS,
        default="mean",
        help="mean of the heads, their largest weights, or a panel for each head",
    )
    parser.add_argument(
        "--size",
        type=int,
        nargs=2,
        metavar=("H", "W"),
        help="size to which the image is resized; default: its own size",
    )
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    if os.path.exists(args.out) or not args.out.endswith(".png"):
        raise RAVLTError(f"--out '{args.out}' exists or is no .png; name a new one.")
    if args.size and min(args.size) < 1:
        raise RAVLTError(f"--size has {min(args.size)}; give positive numbers.")
    checkpoints = args.checkpoint
    if len(checkpoints) == 1:
        checkpoints = checkpoints * len(args.config)
    if len(checkpoints) != len(args.config):
        raise RAVLTError(
            f"--checkpoint names {len(checkpoints)} files for {len(args.config)} "
            f"configs; give one, or one for each."
        )
    image = read_image(Path(args.image))
    size, pixel = tuple(args.size or image.size[::-1]), tuple(args.pixel)
    where = f"stage {args.stage}, block {args.block}"
    panels = []
    for config, checkpoint in zip(args.config, checkpoints, strict=True):
        torch.manual_seed(0)
        subject = load_subject(config, size, checkpoint)
        # Titles name the config and the checkpoint only where these differ.
        names = ((config, args.config), (checkpoint, checkpoints))
        label = "".join(f"{Path(a).stem}: " for a, of in names if len(set(of)) > 1)
        for name in args.attentions:
            if name:
                put_core(subject.backbone, name, args.stage, args.block)
            attention = attention_of_pixel(
                subject, image, size, pixel, args.stage, args.block
            )
            maps = combine_heads(attention.weights, args.heads)
            for head, weights in maps.items():
                title = f"{label}{attention.mechanism}, {where}, {head}"
                summary = describe(attention, weights)
                print(f"{title}: {summary}")
                panels.append((f"{title}\n{summary}", attention, weights))
    figure = draw_rows(image, pixel, panels)
    Path(args.out).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(args.out, dpi=110)


if __name__ == "__main__":
    run_cli(main)
