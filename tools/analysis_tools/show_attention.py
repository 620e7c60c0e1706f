#!/usr/bin/env python
"""Shows what one pixel attends to: rows of attention, over the image."""

import argparse
import os
from pathlib import Path

import torch

from ravlt.analysis.attention.figure import draw_rows
from ravlt.analysis.attention.map import HEADS, by_heads, describe, look, put_core
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
        "attention); a panel each",
    )
    parser.add_argument("--image", required=True, help="image file")
    parser.add_argument(
        "--pixel",
        type=int,
        nargs=2,
        required=True,
        metavar=("X", "Y"),
        help="column and row of the pixel that asks, from 0",
    )
    parser.add_argument("--out", required=True, help="new .png file")
    parser.add_argument(
        "--checkpoint",
        nargs="+",
        default=[None],
        help="weights, one for all or one for each config; random without, from seed 0",
    )
    parser.add_argument(
        "--attentions",
        nargs="+",
        choices=CORES,
        default=[None],
        metavar="NAME",
        help="mechanisms to try in the layer's place, a panel each: "
        + ", ".join(CORES),
    )
    parser.add_argument("--stage", type=int, default=1, help="of the layer, from 1")
    parser.add_argument("--block", type=int, default=1, help="of the layer, from 1")
    parser.add_argument(
        "--heads",
        choices=HEADS,
        default="mean",
        help="mean of heads, the largest of them, or a panel each",
    )
    parser.add_argument(
        "--size",
        type=int,
        nargs=2,
        metavar=("H", "W"),
        help="to which the image is stretched; its own without",
    )
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    if os.path.exists(args.out) or not args.out.endswith(".png"):
        raise RAVLTError(f"--out '{args.out}' exists or is no .png; name a new one.")
    if args.size and min(args.size) < 1:
        raise RAVLTError(f"--size has {min(args.size)}; give pixels.")
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
        several = ((config, args.config), (checkpoint, checkpoints))
        label = "".join(f"{Path(a).stem}: " for a, of in several if len(set(of)) > 1)
        for attention in args.attentions:
            if attention:
                put_core(subject.backbone, attention, args.stage, args.block)
            seen = look(subject, image, size, pixel, args.stage, args.block)
            for which, weights in by_heads(seen.weights, args.heads).items():
                title = f"{label}{seen.attention}, {where}, {which}"
                measured = describe(seen, weights)
                print(f"{title}: {measured}")
                panels.append((f"{title}\n{measured}", seen, weights))
    figure = draw_rows(image, pixel, panels)
    Path(args.out).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(args.out, dpi=110)


if __name__ == "__main__":
    run_cli(main)
