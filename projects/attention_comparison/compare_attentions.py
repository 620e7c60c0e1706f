#!/usr/bin/env python
"""Train one small segmentor with each attention on built-in images, and compare them.

A training whose result is in --out is not repeated: an interrupted comparison continues
there, and seeds, attentions or tasks can be added to an earlier one.
"""

import argparse
import itertools
import json
import multiprocessing
import sys
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

import torch

from comparison import TASKS, Trial, run_trial, time_steps
from comparison_report import (
    COLUMNS,
    comparison_tables,
    draw_comparison,
    summarise,
)
from ravlt.analysis.speed.report import write_csv
from ravlt.analysis.speed.timing import describe_machine
from ravlt.errors import RAVLTError
from ravlt.models.attention import CORES
from ravlt.training.cli import run_cli

CONFIG = Path(__file__).parents[2] / "configs/quickstart/fpn_ravlt-mini_shapes.py"
ROUNDS = 5


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--attentions", nargs="+", choices=CORES, default=list(CORES), metavar="NAME"
    )
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument(
        "--iters", type=int, help="training iterations; default: the task's own"
    )
    parser.add_argument(
        "--jobs", type=int, default=1, help="trainings at a time, of one thread each"
    )
    parser.add_argument(
        "--out",
        default="work_dirs/comparison",
        help="folder for data, logs, results.jsonl, times.json, table.csv, table.md "
        "and comparison.png",
    )
    parser.add_argument(
        "--only",
        choices=["train", "time"],
        help="one half of the work; time steps on a quiet machine",
    )
    args = parser.parse_args()
    for name, least in (("iters", 2), ("jobs", 1)):
        value = getattr(args, name)
        if value is not None and value < least:
            parser.error(f"--{name} is {value}; give at least {least}")
    return args


def read_results(path: Path, trials: list[Trial]) -> list[dict]:
    """Read the results of those of these trials that are in the file, in order."""
    lines = path.read_text().splitlines() if path.exists() else []
    try:
        found = {key_of(row): row for row in map(json.loads, lines)}
    except (ValueError, KeyError) as error:
        raise RAVLTError(
            f"'{path}' has a line that is not a result ({error}); remove that line."
        ) from error
    keys = (key_of(vars(trial)) for trial in trials)
    return [found[key] for key in keys if key in found]


def key_of(row: dict) -> tuple:
    """Return what identifies a trial among results."""
    return tuple(row[key] for key in ("task", "attention", "seed", "iters"))


def train(trials: list[Trial], out: Path, jobs: int) -> None:
    """Run the trials without a result, and append a line to results.jsonl for each."""
    done = {key_of(row) for row in read_results(out / "results.jsonl", trials)}
    todo = [trial for trial in trials if key_of(vars(trial)) not in done]
    print(f"Trainings left: {len(todo)} of {len(trials)}.")
    for task in dict.fromkeys(trial.task for trial in todo):
        TASKS[task].write(out / "data" / task)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, context, torch.set_num_threads, (1,)) as pool:
        runs = [
            pool.submit(
                run_trial,
                trial,
                str(out / "data" / trial.task),
                str(out / "runs" / "-".join(map(str, key_of(vars(trial))))),
            )
            for trial in todo
        ]
        for run in as_completed(runs):
            row = run.result()
            with open(out / "results.jsonl", "a") as file:
                file.write(json.dumps(row) + "\n")
            print(*key_of(row), f"mIoU {row['miou']:.3f}, {row['seconds']:.0f} s")


def report(trials: list[Trial], out: Path) -> None:
    """Write tables and figure of the results so far."""
    results = read_results(out / "results.jsonl", trials)
    if not results:
        raise RAVLTError(f"'{out}' has no results of these trials; train first.")
    path = out / "times.json"
    timed = json.loads(path.read_text()) if path.exists() else {"rows": []}
    rows = summarise(results, timed["rows"])
    text = f"    python {' '.join(sys.argv)}\n\n{comparison_tables(rows)}\n"
    (out / "table.md").write_text(text)
    write_csv(out / "table.csv", rows, COLUMNS, mode="w")
    draw_comparison(out / "comparison.png", rows, results)
    print(text)


def main() -> None:
    args = parse_args()
    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    # Seeds outermost: an early report has one result of every mechanism.
    trials = [
        Trial(str(CONFIG), task, attention, seed, args.iters or TASKS[task].iters)
        for seed, task, attention in itertools.product(
            args.seeds, args.tasks, args.attentions
        )
    ]
    if args.only != "time":
        train(trials, out, args.jobs)
    if args.only != "train":
        torch.set_num_threads(1)
        first = [trial for trial in trials if trial.seed == args.seeds[0]]
        machine = describe_machine(torch.device("cpu"))
        timed = {"machine": machine, "rows": time_steps(first, ROUNDS)}
        (out / "times.json").write_text(json.dumps(timed, indent=1))
    report(trials, out)


if __name__ == "__main__":
    run_cli(main)
