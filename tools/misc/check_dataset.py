#!/usr/bin/env python
"""Report all problems of a config's data sets in one pass.

The exit status is 1 if there is an error, with which training stops or learns wrong
labels. Warnings are of data that are loaded differently from what a viewer shows.
"""

import argparse
import dataclasses
import json
import sys
from collections import Counter

import ravlt  # noqa: F401 (registers what configs name)
from ravlt.config import load_config
from ravlt.data.check.problems import ERROR, report_lines
from ravlt.data.check.run import check_all_data
from ravlt.storage import write_new
from ravlt.training.cli import add_config_arguments, run_cli, use_data_root


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    add_config_arguments(parser)
    parser.add_argument("--data-root", help="folder of the data set")
    parser.add_argument("--out", help="new JSON file for every problem")
    parser.add_argument(
        "--jobs", type=int, default=2, help="processes that decode images; default 2"
    )
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    cfg = load_config(args.config, args.cfg_options)
    use_data_root(cfg, args)
    problems = check_all_data(cfg, args.jobs)
    for line in report_lines(problems):
        print(line)
    counts = Counter(problem.severity for problem in problems)
    print(f"{counts[ERROR]} errors, {len(problems) - counts[ERROR]} warnings")
    if args.out:
        records = [dataclasses.asdict(problem) for problem in problems]
        write_new(json.dumps(records, indent=1).encode(), args.out)
    if counts[ERROR]:
        sys.exit(1)


if __name__ == "__main__":
    run_cli(main)
