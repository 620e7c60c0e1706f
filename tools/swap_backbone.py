#!/usr/bin/env python
"""Writes a config that puts RAVLT into another one."""

import argparse
import os

import torch
from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import MODELS, init_default_scope

from ravlt.analysis.subjects import make_step
from ravlt.engine.cli import run_cli
from ravlt.engine.config import load_config
from ravlt.engine.storage import write_new
from ravlt.errors import RAVLTError
from ravlt.swap import apply_changes, leaf_config, swap_changes


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config", help="config file, or mmdet::... / mmseg::...")
    parser.add_argument("--arch", default="t", choices=["t", "s", "b", "l", "test"])
    parser.add_argument(
        "--attn", nargs="+", help="rala, or four names; default: as released"
    )
    parser.add_argument("--pretrained", help="weights of RAVLT")
    parser.add_argument("-o", "--out", required=True, help="new config file")
    parser.add_argument(
        "--check",
        action="store_true",
        help="build it; one training, one inference step",
    )
    parser.add_argument(
        "--check-size", type=int, default=256, help="side of the images of --check"
    )
    return parser.parse_args()


def check(cfg: Config, side: int) -> None:
    """Runs one step of each kind on random images."""
    init_default_scope(cfg.default_scope)
    model = revert_sync_batchnorm(MODELS.build(cfg.model))
    model.train()
    loss = make_step(model, cfg.filename, 2, (side, side), train=True)()
    loss.backward()
    model.eval()
    with torch.no_grad():
        make_step(model, cfg.filename, 1, (side, side), train=False)()
    idle = [
        n for n, p in model.named_parameters() if p.requires_grad and p.grad is None
    ]
    print(f"check: loss {loss.item():.4g}; parameters without gradient: {len(idle)}")


def main() -> None:
    args = parse_args()
    if not args.out.endswith(".py"):
        raise RAVLTError(f"--out '{args.out}' must end in .py.")
    cfg = load_config(args.config)
    attn = args.attn[0] if args.attn and len(args.attn) == 1 else args.attn
    changes = swap_changes(cfg, args.arch, attn, args.pretrained)
    apply_changes(cfg, changes)
    base = args.config
    if "::" not in base:
        base = os.path.relpath(base, os.path.dirname(os.path.abspath(args.out)))
    write_new(leaf_config(base, cfg, changes).encode(), args.out)
    print(f"{args.out}: inherits {base}, {len(changes)} changes")
    if args.check:
        check(load_config(args.out), args.check_size)


if __name__ == "__main__":
    run_cli(main)
