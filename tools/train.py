#!/usr/bin/env python
"""Train a detector or a segmentor, from a config of this repository or the hosts."""

import argparse
from contextlib import nullcontext

from ravlt.data.check.run import verify_images
from ravlt.errors import RAVLTError
from ravlt.storage import use_atomic_writes
from ravlt.training.checkpoints.fit_hook import add_fit_check
from ravlt.training.checkpoints.hook import saves_at_sigterm
from ravlt.training.checkpoints.resume import set_resume
from ravlt.training.cli import add_run_arguments, read_run_config, run_cli
from ravlt.training.config import (
    add_curves,
    add_safety,
    read_safety,
    set_bad_losses,
    set_precision,
)
from ravlt.training.distributed.group import join_processes
from ravlt.training.distributed.preparation import check_data_once, fetch_weights
from ravlt.training.guards.signals import noticing_sigterm
from ravlt.training.start import build_runner, check_backbones


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    add_run_arguments(parser)
    parser.add_argument(
        "--resume",
        nargs="?",
        const="auto",
        metavar="PATH",
        help="continue from the latest checkpoint in the work directory, or from PATH",
    )
    parser.add_argument("--amp", action="store_true", help="mixed precision (GPU)")
    parser.add_argument(
        "--amp-dtype",
        choices=["float16", "bfloat16"],
        help="of --amp, which this implies; default: the config's, or float16",
    )
    parser.add_argument(
        "--auto-scale-lr",
        action="store_true",
        help="scale the learning rate by the batch size over auto_scale_lr's",
    )
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    cfg = read_run_config(args, args.resume)
    safety = read_safety(cfg)
    use_atomic_writes(sync=safety["sync_files"])
    check_backbones(cfg)
    join_processes(cfg)
    check_data_once(cfg, ("train_dataloader", "val_dataloader"))
    add_safety(cfg)
    add_fit_check(cfg, strict=False)
    add_curves(cfg)
    set_precision(cfg, args.amp or bool(args.amp_dtype), args.amp_dtype)
    set_bad_losses(cfg)
    set_resume(cfg, args.resume, safety["checksums"])
    if args.auto_scale_lr:
        if "base_batch_size" not in (cfg.get("auto_scale_lr") or {}):
            raise RAVLTError(
                f"--auto-scale-lr needs auto_scale_lr.base_batch_size in "
                f"'{args.config}'; add auto_scale_lr=dict(base_batch_size=...)."
            )
        cfg.auto_scale_lr.enable = True
    fetch_weights(cfg)
    runner = build_runner(cfg)
    verify_images(runner)
    with noticing_sigterm() if saves_at_sigterm(runner) else nullcontext():
        runner.train()


if __name__ == "__main__":
    run_cli(main)
