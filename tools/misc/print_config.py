#!/usr/bin/env python
"""Print a config with all inherited keys. Reading a config runs its Python code."""

import argparse

from ravlt.config import load_config
from ravlt.training.cli import add_config_arguments, run_cli


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    add_config_arguments(parser)
    args = parser.parse_args()
    print(load_config(args.config, args.cfg_options).pretty_text)


if __name__ == "__main__":
    run_cli(main)
