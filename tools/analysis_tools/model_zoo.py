#!/usr/bin/env python
"""Count every model of the zoo, beside the paper's numbers where it has them."""

import argparse
from pathlib import Path

import ravlt  # noqa: F401 (registers the classifiers)
from ravlt.analysis.costs.zoo import zoo_rows, zoo_table
from ravlt.errors import RAVLTError
from ravlt.training.cli import run_cli

CONFIGS = Path(__file__).parents[2] / "configs"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--arch", default="tsbl", help="letters of the sizes to count")
    args = parser.parse_args()
    rows = list(zoo_rows(str(CONFIGS), args.arch))
    print(zoo_table(rows))
    different = [row.name for row in rows if not row.agrees]
    if different:
        names = ", ".join(different)
        raise RAVLTError(f"These models differ from their metafiles: {names}.")


if __name__ == "__main__":
    run_cli(main)
