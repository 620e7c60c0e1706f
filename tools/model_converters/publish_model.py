#!/usr/bin/env python
"""Prepare a checkpoint for publication: weights and meta only, sha-256 in its name.

In a checkpoint of an EMAHook, ``state_dict`` holds the averaged weights. They are kept;
the weights before averaging and the optimizer's state are removed.
"""

import argparse
import hashlib
import io
import os
import sys

import torch

from ravlt.storage import write_new
from ravlt.training.cli import run_cli
from ravlt.weights.checkpoint import read_checkpoint, state_dict_of


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", help="checkpoint of a training run")
    parser.add_argument(
        "out", help="new file; NAME.pth becomes NAME-<first 8 digits of sha-256>.pth"
    )
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    checkpoint = read_checkpoint(args.checkpoint)
    kept = dict(state_dict=state_dict_of(checkpoint, args.checkpoint))
    if "meta" in checkpoint:
        kept["meta"] = checkpoint["meta"]
    removed = sorted(checkpoint.keys() - kept.keys())
    buffer = io.BytesIO()
    torch.save(kept, buffer)
    digest = hashlib.sha256(buffer.getvalue()).hexdigest()
    stem = args.out.removesuffix(".pth")
    path = f"{stem}-{digest[:8]}.pth"
    write_new(buffer.getvalue(), path)
    print(f"removed: {', '.join(removed) or 'nothing'}", file=sys.stderr)
    print(os.path.relpath(path))


if __name__ == "__main__":
    run_cli(main)
