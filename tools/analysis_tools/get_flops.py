#!/usr/bin/env python
"""Count parameters and multiply-adds of a model, part by part."""

import argparse

from ravlt.analysis.costs.count import costs_of
from ravlt.training.cli import run_cli


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "model", help="config file, mmdet::... / mmseg::..., ravlt_t[:rala], timm model"
    )
    parser.add_argument(
        "--shape",
        type=int,
        nargs="+",
        default=[800, 1280],
        help="height and width of the image, or one number for both",
    )
    args = parser.parse_args()
    if len(args.shape) > 2:
        parser.error("--shape takes one or two numbers")
    return args


def main() -> None:
    args = parse_args()
    size = (args.shape[0], args.shape[-1])
    costs = costs_of(args.model, size)
    print(f"{args.model} at {size[0]} x {size[1]}; G are multiply-adds (MACs)")
    print(f"{'':24}{'params (M)':>12}{'G, no attention':>18}{'G, everything':>16}")
    for name, cost in costs.items():
        print(
            f"{name:24}{cost.params / 1e6:12.3f}"
            f"{cost.macs_without_attention / 1e9:18.2f}{cost.macs / 1e9:16.2f}"
        )
    print(
        "'No attention' leaves out products of two activations, as papers do. "
        "StandardRoIHead and CascadeRoIHead are counted with the boxes of 1000 "
        "proposals and the masks of 100, other models with what the host computes for "
        "one image."
    )


if __name__ == "__main__":
    run_cli(main)
