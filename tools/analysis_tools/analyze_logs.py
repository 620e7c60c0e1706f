#!/usr/bin/env python
"""Draws and prints what training runs logged, run beside run."""

import argparse
import os

from ravlt.analysis.logs import draw_logs, read_logs
from ravlt.engine.cli import run_cli
from ravlt.errors import RAVLTError


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("work_dirs", nargs="+", help="work directories of training")
    parser.add_argument(
        "--keys", nargs="+", default=["loss"], help="e.g. loss mIoU coco/bbox_mAP"
    )
    parser.add_argument("--out", help="new picture, e.g. curves.png")
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    if args.out and os.path.exists(args.out):
        raise RAVLTError(f"--out '{args.out}' exists; name another file or remove it.")
    runs = {work_dir: read_logs(work_dir) for work_dir in args.work_dirs}
    for name, curves in runs.items():
        for key in args.keys:
            if key in curves:
                values = [value for _, value in curves[key]]
                print(
                    f"{name}: {key} last {values[-1]:.4g}, lowest {min(values):.4g}, "
                    f"highest {max(values):.4g}, {len(values)} values"
                )
    if args.out:
        draw_logs(args.out, runs, args.keys)


if __name__ == "__main__":
    run_cli(main)
