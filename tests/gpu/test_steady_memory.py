"""Memory stays the same however long training takes."""

import torch

from helpers.backbones import build, images
from helpers.kernels import DEVICE, autocast

SIZES = ((64, 96), (96, 64), (128, 160), (37, 133), (224, 96), (160, 352), (64, 64))
CYCLES = 29  # 203 steps
BLOCK = 512  # bytes of the smallest allocation


def test_training_at_changing_sizes():
    """Not even the smallest tensor may be left behind by each step."""
    model = build(drop_path_rate=0.1).to(DEVICE).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    batches = [images(2, 3, *size).to(DEVICE) for size in SIZES]
    kept, peaks = [], []
    for _ in range(CYCLES):
        torch.cuda.reset_peak_memory_stats()
        for x in batches:
            optimizer.zero_grad()
            with autocast(torch.bfloat16):
                outs = model(x)
            sum(out.square().mean() for out in outs).backward()
            optimizer.step()
        del outs
        kept.append(torch.cuda.memory_allocated())
        peaks.append(torch.cuda.max_memory_allocated())
    assert kept[0] > 0
    steps = (CYCLES - 1) * len(SIZES)
    assert kept[-1] - kept[0] < steps * BLOCK, kept
    # The first cycle allocates gradients and optimizer states for the first time.
    assert peaks[-1] - peaks[1] < steps * BLOCK, peaks
