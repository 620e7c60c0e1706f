#!/usr/bin/env python
"""Try the swap on every config that mmdet and mmseg ship, and write a table."""

import argparse
import multiprocessing
import os
import time
from multiprocessing.connection import wait

from coverage_table import coverage_table
from ravlt.training.cli import run_cli
from sweep import (
    Result,
    cover,
    family_of,
    list_configs,
    read_results,
    write_result,
)

# Only installed modules: the forkserver imports them without the path of this script.
_PRELOAD = ["mmdet.apis", "mmseg.apis", "mmcv.ops", "ravlt.swap.trial"]


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--out",
        default="work_dirs/swap_coverage",
        help="folder of the results; an interrupted sweep continues there",
    )
    parser.add_argument(
        "--only", default="", help="only configs whose name contains this"
    )
    parser.add_argument(
        "--each-family",
        action="store_true",
        help="only the first config of each family",
    )
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    parser.add_argument(
        "--timeout",
        type=float,
        default=600,
        help="seconds after which a config is broken",
    )
    return parser.parse_args()


def cover_one(name: str, path: str) -> None:
    """Try a config in a process of its own, and write its result."""
    import torch

    torch.set_num_threads(1)
    log = os.open(f"{path}.log", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    for stream in (1, 2):  # the hosts print much
        os.dup2(log, stream)
    write_result(path, cover(name, read_results(path)))


def main() -> None:
    args = parse_args()
    os.makedirs(args.out, exist_ok=True)
    path = os.path.abspath(os.path.join(args.out, "results.jsonl"))
    done = {result.config for result in read_results(path)}
    names = [name for name in list_configs() if args.only in name]
    if args.each_family:
        names = list({family_of(name): name for name in reversed(names)}.values())
    names = [name for name in names if name not in done]
    print(f"{len(names)} configs to try, {len(done)} done before", flush=True)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOAD)
    running: dict = {}
    while names or running:
        while names and len(running) < args.jobs:
            name = names.pop(0)
            process = context.Process(target=cover_one, args=(name, path))
            process.start()
            running[process] = (name, time.monotonic() + args.timeout)
        wait([process.sentinel for process in running], timeout=1)
        for process, (name, deadline) in list(running.items()):
            late = time.monotonic() > deadline
            if process.is_alive() and not late:
                continue
            process.kill()
            process.join()
            del running[process]
            if name not in {result.config for result in read_results(path)}:
                why = "took too long" if late else f"died ({process.exitcode})"
                write_result(path, Result(name, "broken", why))
    results = [result for result in read_results(path) if args.only in result.config]
    table = coverage_table(results)
    with open(os.path.join(args.out, "table.md"), "w") as file:
        file.write(table + "\n")
    print(table)


if __name__ == "__main__":
    run_cli(main)
