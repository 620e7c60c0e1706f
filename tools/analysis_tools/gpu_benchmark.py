#!/usr/bin/env python
"""Test and measure this library on a GPU, in parts that continue where they stopped."""

import argparse
import gc
import os
import subprocess
import sys
import time
from pathlib import Path

import torch

from ravlt.analysis.speed.gpu.journal import Journal, read_rows, run_cases
from ravlt.analysis.speed.gpu.models import (
    FULL_INFERENCE,
    FULL_TRAINING,
    QUICK_INFERENCE,
    QUICK_TRAINING,
    backbone_cases,
    training_cases,
)
from ravlt.analysis.speed.gpu.ops import FULL, QUICK, op_cases
from ravlt.analysis.speed.gpu.table import PARTS, render
from ravlt.analysis.speed.timing import describe_machine
from ravlt.errors import RAVLTError
from ravlt.training.cli import run_cli

ROOT = Path(__file__).parents[2]
# Seconds for each part; less than ten minutes in all.
BUDGETS = {"tests": 180, "ops": 130, "backbones": 150, "training": 110}
# Seconds after the time limit at which a process that hangs is killed.
GRACE = 60


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "part",
        choices=[*PARTS, "all", "table"],
        help="what to measure; table only reads the results",
    )
    parser.add_argument(
        "--out", required=True, help="folder of results, new or continued"
    )
    parser.add_argument(
        "--budget",
        type=positive,
        help=f"time limit of each part in seconds; default: {BUDGETS}",
    )
    parser.add_argument(
        "--retry", action="store_true", help="repeat measurements that have failed"
    )
    parser.add_argument("--device", default="cuda", help="cuda (default), or cpu")
    parser.add_argument(
        "--quick", action="store_true", help="tiny sizes, to test the tool itself"
    )
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


def positive(text: str) -> float:
    """Convert an argument to a number above 0."""
    number = float(text)
    if not number > 0:
        raise ValueError(text)
    return number


def measure(args: argparse.Namespace) -> None:
    """Measure one part in this process."""
    end = time.monotonic() + args.budget
    device = torch.device(args.device)
    sizes = "quick" if args.quick else "full"
    machine = describe_machine(device) | {"sizes": sizes}
    journal = Journal(path_of(args, args.part), machine)
    gc.freeze()  # keeps imported objects out of the collection after every case
    if args.part == "ops":
        cases = op_cases(device, QUICK if args.quick else FULL)
    elif args.part == "backbones":
        cases = backbone_cases(
            device, QUICK_INFERENCE if args.quick else FULL_INFERENCE
        )
    else:
        sizes = QUICK_TRAINING if args.quick else FULL_TRAINING
        cases = training_cases(device, sizes, ROOT / "configs")
    run_cases(cases, journal, device, end)


def run_part(args: argparse.Namespace, part: str) -> None:
    """Run one part in a new process, and in further ones until it is complete.

    A process ends early if it crashes or makes the GPU unusable.

    Raises:
        RAVLTError: If a process ends early without a new result.
    """
    path = path_of(args, part)
    end = time.monotonic() + (args.budget or BUDGETS[part])
    if args.retry and path.exists():
        machine, _ = read_rows(path)
        Journal(path, machine).forget_failures()
    before = None
    while time.monotonic() < end:
        content = path.read_text() if path.exists() else ""
        if content == before:
            raise RAVLTError(f"Part '{part}' failed; see the lines above.")
        before = content
        left = end - time.monotonic()
        command = (
            test_command(path, left)
            if part == "tests"
            else worker_command(args, part, left)
        )
        try:
            if subprocess.run(command, cwd=ROOT, timeout=left + GRACE).returncode == 0:
                return
        except subprocess.TimeoutExpired:
            print(f"Part '{part}' was killed at its time limit.", file=sys.stderr)
            return


def test_command(path: Path, seconds: float) -> list[str]:
    """Return the command that runs the tests for GPUs."""
    plugin = ["-p", "ravlt.analysis.speed.gpu.recorder", "--journal", str(path)]
    options = ["-m", "gpu or kernels", "--continue-on-collection-errors"]
    command = [sys.executable, "-m", "pytest", *options, *plugin]
    return [*command, "--seconds", str(seconds)]


def worker_command(args: argparse.Namespace, part: str, seconds: float) -> list[str]:
    """Return the command that measures a part in a new process."""
    command = [sys.executable, __file__, part, "--worker", "--out", args.out]
    command += ["--budget", str(seconds), "--device", args.device]
    return [*command, "--quick"] if args.quick else command


def path_of(args: argparse.Namespace, part: str) -> Path:
    """Return the path of a part's journal."""
    return Path(args.out) / f"{part}.json"


def check(args: argparse.Namespace) -> None:
    """Raise RAVLTError for arguments that are not usable."""
    if os.path.exists(args.out) and not os.path.isdir(args.out):
        raise RAVLTError(f"--out '{args.out}' is a file; name a folder.")
    if args.part == "table":
        if not any(path_of(args, part).exists() for part in PARTS):
            raise RAVLTError(f"'{args.out}' has no results; name the folder of a run.")
    elif args.device not in ("cuda", "cpu"):
        raise RAVLTError(
            f"--device '{args.device}' is neither cuda nor cpu; choose a GPU by "
            f"CUDA_VISIBLE_DEVICES."
        )
    elif args.device == "cuda" and not torch.cuda.is_available():
        raise RAVLTError("torch finds no CUDA device; use a machine with a GPU.")


def main() -> None:
    args = parse_args()
    check(args)
    if args.worker:
        measure(args)
        return
    args.out = os.path.abspath(args.out)
    os.makedirs(args.out, exist_ok=True)
    if args.device == "cpu":  # kernels then run in Triton's interpreter
        os.environ["TRITON_INTERPRET"] = "1"
    errors = []
    for part in {"all": PARTS, "table": ()}.get(args.part, [args.part]):
        try:
            run_part(args, part)
        except RAVLTError as error:  # the other parts still run
            errors.append(str(error))
    table = render(Path(args.out))
    (Path(args.out) / "table.md").write_text(table)
    print(table)
    _, tests = read_rows(path_of(args, "tests"))
    failed = sum("failed" in row for row in tests)
    if failed and args.part in ("tests", "all"):
        errors.append(f"{failed} tests failed, see '{args.out}/tests.json'.")
    if errors:
        raise RAVLTError(" ".join(errors))


if __name__ == "__main__":
    run_cli(main, "run the same command again")
