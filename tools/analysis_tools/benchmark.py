#!/usr/bin/env python
"""Measure time, memory and cost of models, each in a new process."""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time

import torch

from ravlt.analysis.costs.macs import count_macs
from ravlt.analysis.speed.report import draw, growth, markdown_table, write_csv
from ravlt.analysis.speed.timing import (
    describe_machine,
    matmul_rate,
    measure_times,
    peak_memory,
    saved_bytes,
)
from ravlt.analysis.subjects import (
    autocast_to,
    build_subject,
    is_config,
    make_run,
    make_step,
)
from ravlt.errors import RAVLTError
from ravlt.inference.fold import switch_to_deploy
from ravlt.models import RAVLT
from ravlt.training.cli import run_cli

DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "models",
        nargs="+",
        help="ravlt_t, ravlt_t:rala, ravlt_t:rala,rala,softmax,softmax (any size and "
        "attention), reference_t:rala (operators in plain PyTorch), a timm model, or a "
        "config file (its detector or segmentor)",
    )
    parser.add_argument(
        "--sizes", nargs="+", default=["800x1280"], help="height x width, e.g. 800x1280"
    )
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument(
        "--train", action="store_true", help="forward and backward pass, not inference"
    )
    parser.add_argument(
        "--with-cp",
        action="store_true",
        help="RAVLT recomputes activations of its blocks",
    )
    parser.add_argument(
        "--deploy", action="store_true", help="fold norms of RAVLT models"
    )
    parser.add_argument("--compile", action="store_true", help="torch.compile")
    parser.add_argument(
        "--dtype",
        choices=DTYPES,
        default="float32",
        help="half precision by autocast",
    )
    parser.add_argument(
        "--device", default="cuda" if torch.cuda.is_available() else "cpu"
    )
    parser.add_argument("--threads", type=int, help="CPU threads; default: PyTorch's")
    parser.add_argument("--warmup", type=int, default=2)
    parser.add_argument(
        "--repeat", type=int, default=5, help="timed calls in each round"
    )
    parser.add_argument(
        "--rounds",
        type=int,
        default=2,
        help="rounds over all models, which average out drifts of the machine's speed",
    )
    parser.add_argument(
        "--out", help="new folder for results.csv, results.json, table.md, growth.png"
    )
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.deploy and args.train:
        parser.error("--deploy is for inference; remove --train")
    return args


def measure(args: argparse.Namespace) -> dict:
    """Measure one model at one size, in this process."""
    device, dtype = torch.device(args.device), DTYPES[args.dtype]
    if args.threads:
        torch.set_num_threads(args.threads)
    name, size = args.models[0], parse_size(args.sizes[0])
    torch.manual_seed(0)
    start = time.perf_counter()
    model = build_subject(name, size, args.with_cp)
    row = {"seconds_build": time.perf_counter() - start}
    model = model.to(device).train(args.train)
    parameters = sum(p.numel() for p in model.parameters())
    if args.deploy and any(isinstance(m, RAVLT) for m in model.modules()):
        switch_to_deploy(model)
    step = make_step(model, name, args.batch, size, args.train)
    if args.compile:
        model.compile()

    precision = autocast_to(dtype, device)
    run = make_run(step, model, args.train, precision)
    row["peak_mb"] = in_mb(peak_memory(run, device))
    rates = [matmul_rate(device, dtype)]
    times = measure_times(run, device, args.warmup, args.repeat)
    rates.append(matmul_rate(device, dtype))
    row |= {"times": times, "matmul_rates": rates, "params_m": parameters / 1e6}
    if args.train:
        with precision:
            row["saved_mb"] = in_mb(saved_bytes(step, model))
    if not is_config(name):
        row |= count(name, size, args.batch)
    return row | {"machine": describe_machine(device)}


def count(name: str, size: tuple[int, int], batch: int) -> dict:
    """Count multiply-adds on the meta device."""
    with torch.device("meta"):
        model = build_subject(name, size).eval()
        step = make_step(model, name, batch, size, train=False)
        without_attention, total = count_macs(step)
    return {"gmacs_without_attention": without_attention / 1e9, "gmacs": total / 1e9}


def run_child(args: argparse.Namespace, name: str, size: str) -> dict | None:
    """Measure in a new process; print an error and return None if that fails."""
    command = [sys.executable, __file__, name, "--child", "--sizes", size]
    for flag in ("train", "with_cp", "deploy", "compile"):
        if getattr(args, flag):
            command.append(f"--{flag.replace('_', '-')}")
    for option in ("batch", "dtype", "device", "threads", "warmup", "repeat"):
        if getattr(args, option) is not None:
            command += [f"--{option}", str(getattr(args, option))]
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        lines = result.stderr.strip().splitlines() or [f"status {result.returncode}"]
        print(f"{name} at {size} failed: {lines[-1]}", file=sys.stderr)
        return None
    return json.loads(result.stdout.splitlines()[-1])


def summarize(name: str, size: str, args: argparse.Namespace, runs: list[dict]) -> dict:
    """Return one row of the table from the results of all rounds."""
    times = [t for run in runs for t in run["times"]]
    rate = statistics.median(r for run in runs for r in run["matmul_rates"])
    median = statistics.median(times)
    row = {
        **runs[0],
        "model": name,
        "size": size,
        "batch": args.batch,
        "times": times,
        "seconds": median,
        "seconds_min": min(times),
        "seconds_max": max(times),
        "matmul_gmacs_per_second": rate / 1e9,
    }
    if "gmacs" in row:
        # A backward pass has twice the multiply-adds of a forward pass.
        work = row["gmacs"] * 1e9 * (3 if args.train else 1)
        row["matmul_share"] = work / median / rate
    return row


def parse_size(text: str) -> tuple[int, int]:
    """Parse HEIGHTxWIDTH.

    Raises:
        RAVLTError: If the text has another form.
    """
    try:
        height, width = map(int, text.split("x"))
    except ValueError:
        raise RAVLTError(
            f"--sizes has '{text}'; write height x width in pixels, e.g. 800x1280."
        ) from None
    return height, width


def in_mb(count: int | None) -> float | None:
    """Convert bytes to MB."""
    return None if count is None else count / 1e6


def report(args: argparse.Namespace, rows: list[dict]) -> None:
    """Print the table, and write the files of ``--out`` if given."""
    machine, *_ = (row.pop("machine") for row in rows)
    lines = [", ".join(f"{k}: {v}" for k, v in machine.items()), ""]
    lines += ["    python " + " ".join(sys.argv), "", markdown_table(rows), ""]
    for key, title in (("seconds", "Time"), ("peak_mb", "Memory")):
        slopes = growth(rows, key).items()
        lines += [f"{title} of {n} grows with pixels^{s:.3f}." for n, s in slopes]
    print("\n".join(lines))
    if not args.out:
        return
    with open(os.path.join(args.out, "table.md"), "x") as file:
        file.write("\n".join(lines) + "\n")
    with open(os.path.join(args.out, "results.json"), "x") as file:
        json.dump({"machine": machine, "rows": rows}, file, indent=1)
    write_csv(os.path.join(args.out, "results.csv"), rows)
    draw(os.path.join(args.out, "growth.png"), rows)


def main() -> None:
    args = parse_args()
    for size in args.sizes:
        parse_size(size)
    if args.child:
        print(json.dumps(measure(args)))
        return
    if args.out:
        if os.path.exists(args.out):
            raise RAVLTError(f"--out '{args.out}' exists; name a new folder.")
        os.makedirs(args.out)
    runs: dict[tuple[str, str], list[dict]] = {}
    for i in range(args.rounds):
        for size in args.sizes:
            for name in args.models:
                print(f"round {i + 1}: {name} at {size}", file=sys.stderr)
                result = run_child(args, name, size)
                if result is not None:
                    runs.setdefault((name, size), []).append(result)
    if not runs:
        raise RAVLTError("All measurements failed; see the errors above.")
    report(args, [summarize(*key, args, results) for key, results in runs.items()])


if __name__ == "__main__":
    run_cli(main)
