#!/usr/bin/env python
"""Measure what each switch of `safety` costs: a step, a checkpoint, a resumed run.

The model is built with random weights and an AdamW state; the checkpoint is written to
a temporary folder on the disk to be measured.
"""

import argparse
import io
import os
import statistics
import tempfile
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from ravlt.analysis.speed.timing import describe_machine, measure_times
from ravlt.analysis.subjects import autocast_to, build_subject, make_run, make_step
from ravlt.storage import AtomicLocalBackend
from ravlt.training.cli import run_cli
from ravlt.training.guards.finite import StopOnNonFiniteHook
from ravlt.training.loops.batches import LOADING, TRAINING, set_random_state


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--step", default="ravlt_t", help="backbone of the step")
    parser.add_argument("--size", type=int, nargs=2, default=(512, 512))
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument(
        "--checkpoint",
        default="configs/mask_rcnn/mask-rcnn_ravlt-l_fpn_1x_coco.py",
        help="config or backbone of the checkpoint",
    )
    parser.add_argument("--folder", default=".", help="where the disk is")
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument(
        "--device", default="cuda" if torch.cuda.is_available() else "cpu"
    )
    return parser.parse_args()


def median(step: Callable[[], object], device: torch.device, repeat: int) -> float:
    """Return the median time of a call in seconds, after one that does not count."""
    return statistics.median(measure_times(step, device, 1, repeat))


def checkpoint_of(model: nn.Module) -> dict:
    """Return the weights of a model, with the state that AdamW has after a step."""
    optimizer = torch.optim.AdamW(model.parameters())
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    return dict(state_dict=model.state_dict(), optimizer=optimizer.state_dict())


def seed_batch() -> None:
    set_random_state(LOADING, 0, 0, 1)
    set_random_state(TRAINING, 0, 0, 1)


def main() -> None:
    args = parse_args()
    device, size = torch.device(args.device), tuple(args.size)
    print(", ".join(f"{k}: {v}" for k, v in describe_machine(device).items()))
    model = build_subject(args.step, size).to(device).train()
    step = make_step(model, args.step, args.batch, size, train=True)
    seconds = median(
        make_run(step, model, True, autocast_to(torch.float32, device)),
        device,
        args.repeat,
    )
    print(f"step of {args.step}, {args.batch} x {size}: {seconds:.3f} s")
    seeding = median(seed_batch, device, 200)
    share = seeding / seconds
    print(f"exact_resume: {seeding * 1e6:.0f} us a step ({share:.4%})")

    saved = checkpoint_of(build_subject(args.checkpoint, size))
    buffer = io.BytesIO()
    start = time.perf_counter()
    torch.save(saved, buffer)
    serializing = time.perf_counter() - start
    data = buffer.getvalue()
    hook, backend = StopOnNonFiniteHook(), AtomicLocalBackend()
    cpu = torch.device("cpu")
    finite = median(lambda: hook.before_save_checkpoint(None, saved), cpu, args.repeat)
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        path = Path(folder, "iter_1.pth")
        times = {False: [], True: []}
        for _ in range(args.repeat):  # in turns, because the disk's speed drifts
            for sync, seconds_of in times.items():
                backend.sync = sync
                seconds_of += measure_times(lambda: backend.put(data, path), cpu, 0, 1)
                os.sync()  # what one write leaves would slow down the next
        with zipfile.ZipFile(path) as archive:
            checking = median(archive.testzip, cpu, args.repeat)
    print(f"checkpoint of {len(data) / 1e9:.2f} GB: {serializing:.2f} s to serialize")
    plain, synced = (statistics.median(times[sync]) for sync in (False, True))
    print(f"  without sync: {plain:.2f} s to write")
    print(f"sync_files: {synced - plain:.2f} s a checkpoint")
    print(f"finite_weights: {finite:.2f} s a checkpoint")
    print(f"checksums: {checking:.2f} s a resumed run")


if __name__ == "__main__":
    run_cli(main)
