#!/usr/bin/env python
"""Makes one file of a sharded checkpoint: weights and meta, for all other tools."""

import argparse

from ravlt.engine.cli import run_cli
from ravlt.engine.shards import consolidate
from ravlt.engine.storage import save_new


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", help="folder that a sharded run wrote")
    parser.add_argument("out", help="new file")
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    checkpoint = consolidate(args.checkpoint)
    save_new(checkpoint, args.out)
    print(f"{args.out}: {len(checkpoint['state_dict'])} tensors")


if __name__ == "__main__":
    run_cli(main)
