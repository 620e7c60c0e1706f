#!/usr/bin/env python
"""Convert a released RAVLT detector or segmentor to the current OpenMMLab."""

import argparse
import os

from ravlt.config import load_config
from ravlt.storage import save_new
from ravlt.training.cli import run_cli
from ravlt.weights.convert import convert_released


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config", help="config of the same method and size")
    parser.add_argument("released", help="released file (.pth)")
    parser.add_argument("out", help="new file")
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    checkpoint = convert_released(load_config(args.config), args.released)
    save_new(checkpoint, args.out)
    print(
        f"{args.out}: {len(checkpoint['state_dict'])} tensors, exactly those of the "
        f"model. Evaluate it: python tools/test.py {args.config} "
        f"{os.path.relpath(args.out)}"
    )


if __name__ == "__main__":
    run_cli(main)
