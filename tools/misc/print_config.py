#!/usr/bin/env python
"""Prints a config with all that it inherits; or, before that, what it would run."""

import argparse
import os

from ravlt.analysis.config_risks import find_risks
from ravlt.engine.cli import add_config_arguments, run_cli
from ravlt.engine.config import load_config


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    add_config_arguments(parser)
    parser.add_argument(
        "--imports",
        action="store_true",
        help="run nothing: list what the config and its bases inherit, import, call, "
        "name and read",
    )
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    if not args.imports:
        print(load_config(args.config, args.cfg_options).pretty_text)
        return
    risks = find_risks(args.config)
    for risk in risks:
        what = " ".join(risk.what.split())
        print(f"{os.path.relpath(risk.path)}:{risk.line}: {risk.kind} {what}")
    count = sum(risk.kind not in ("inherits", "reads") for risk in risks)
    print(f"{count} to look at; a config is code, and nothing of it was run.")


if __name__ == "__main__":
    run_cli(main)
