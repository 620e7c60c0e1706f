"""Load: hours of training and evaluation, thousands of images. SOAK_MINUTES=120."""

import json
import os
import random
import time

import numpy as np
import pytest

from helpers.process_watch import Watch, descendants
from helpers.tool_runs import DET, SEG, train

MINUTES = float(os.environ.get("SOAK_MINUTES", 120))
IMAGES = 10_000
ENDLESS = {
    "train_cfg.max_iters": 10**7,
    "train_cfg.val_interval": 50,
    "train_dataloader.num_workers": 2,
    "train_dataloader.persistent_workers": True,
    "val_dataloader.num_workers": 1,
    "val_dataloader.persistent_workers": False,
    "default_hooks.checkpoint.interval": 50,
    "default_hooks.logger.interval": 50,
}


@pytest.mark.slow
@pytest.mark.parametrize("config", [DET, SEG], ids=["detector", "segmentor"])
def test_training_and_evaluation_for_hours(tmp_path, shapes, config):
    """Memory stays, and so do files and processes; Ctrl-C ends all of them."""
    run = train(tmp_path, "--data-root", shapes, config=config, options=ENDLESS)
    watch = Watch(run.pid)
    end = time.monotonic() + MINUTES * 60 / 2  # both configs together
    while time.monotonic() < end and run.is_alive():
        time.sleep(5)
        watch.sample()
    family = descendants(run.pid)
    evaluations = run.out.count("Iter(val)")
    report(config.stem, watch, evaluations=evaluations)
    assert run.interrupt() == 1  # and so has not ended before
    assert evaluations > 3
    assert not any(os.path.exists(f"/proc/{pid}") for pid in family)
    # mmengine keeps what every iteration logs (up to a million of them), and a few
    # copies while it is written; allocators move by some 50 MB.
    history = evaluations * ENDLESS["train_cfg.val_interval"] * 1e-3
    assert watch.slope() * watch.hours() < 50 + history
    # A validation loader's worker comes and goes.
    assert max(watch.processes) <= 5
    early, late = watch.fewest_files()
    assert late <= early


@pytest.mark.slow
def test_ten_thousand_images_of_random_sizes(shapes):
    """Memory stays flat in the loop of a server that sees many sizes."""
    from mmengine.config import Config
    from mmseg.apis import inference_model, init_model

    cfg = Config.fromfile(SEG)
    cfg.merge_from_dict({"model.backbone.arch": "test"})
    cfg.model.neck.in_channels = [16, 32, 48, 64]
    model = init_model(cfg, device="cpu")
    draw = random.Random(0)
    watch = Watch(os.getpid())
    for i in range(IMAGES):
        height, width = draw.randrange(16, 120), draw.randrange(16, 700)
        inference_model(model, np.zeros((height, width, 3), np.uint8))
        if i % 100 == 99:
            watch.sample()
    report("inference", watch)
    # Allocators keep what the largest image took: 50 MB in place of a slope.
    memory, files = watch.memory[watch.quarter :], watch.files[watch.quarter :]
    assert max(memory) - memory[0] < 50e6
    assert len(set(files)) == 1


def report(name: str, watch: Watch) -> None:
    """Prints what docs/reliability.md says (pytest -s)."""
    numbers = dict(
        hours=round(watch.hours(), 2),
        samples=len(watch.seconds),
        megabytes=[round(watch.memory[i] / 1e6) for i in (watch.quarter, -1)],
        slope_mb_per_hour=round(watch.slope(), 2),
        fewest_files=watch.fewest_files(),
        processes=sorted(set(watch.processes)),
    )
    print(name, json.dumps(numbers))
