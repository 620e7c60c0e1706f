#!/usr/bin/env python
"""Writes a config that puts RAVLT into another one."""

import argparse
import os

from ravlt.config import load_config
from ravlt.errors import RAVLTError
from ravlt.storage import write_new
from ravlt.swap import leaf_config, plan_swap
from ravlt.swap.trial import try_model
from ravlt.training.cli import run_cli


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config", help="config file, or mmdet::... / mmseg::...")
    parser.add_argument("--arch", default="t", choices=["t", "s", "b", "l", "test"])
    parser.add_argument(
        "--attn",
        nargs="+",
        help="attention of all stages, e.g. rala, or of each; default: as released",
    )
    parser.add_argument("--pretrained", help="weights of RAVLT")
    parser.add_argument("-o", "--out", required=True, help="the new config")
    parser.add_argument(
        "--check",
        action="store_true",
        help="build it, and run one training and one inference step on random images",
    )
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    if not args.out.endswith(".py"):
        raise RAVLTError(f"--out '{args.out}' must end in .py; rename it.")
    cfg = load_config(args.config, allow_failed_imports=True)
    if getattr(cfg, "_imported_names", None):
        raise RAVLTError(
            f"'{args.config}' is a config in pure Python, which no _base_ can name; in "
            f"Python, ravlt.swap_backbone(cfg).dump('{args.out}') writes all of it."
        )
    attn = args.attn[0] if args.attn and len(args.attn) == 1 else args.attn
    swap = plan_swap(cfg, args.arch, attn, args.pretrained)
    base = args.config
    if "::" not in base:
        base = os.path.relpath(base, os.path.dirname(os.path.abspath(args.out)))
    text = leaf_config(base, cfg, swap.apply(cfg), swap)
    write_new(text.encode(), args.out)
    for warning in swap.warnings:
        print(f"note: {warning}")
    print(f"{args.out}: inherits {base}, {len(swap.changes)} changes")
    if args.check:
        trial = try_model(load_config(args.out))
        if trial.idle:
            raise RAVLTError(
                f"'{args.out}' leaves {trial.idle[0]} without a gradient, at which "
                f"training on several GPUs stops; report the config."
            )
        loss = "does not train" if trial.loss is None else f"loss {trial.loss:.4g}"
        print(f"check: {loss}, predicts")


if __name__ == "__main__":
    run_cli(main)
