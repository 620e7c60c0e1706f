"""Remedies for errors of PyTorch and the hosts that users can correct themselves."""

import re

import torch

_CPU_MEMORY = re.compile(r"DefaultCPUAllocator: (can't allocate|not enough) memory")
_SIZES = re.compile(
    r"stack expects each tensor to be equal size, but got (?P<first>\[[\d, ]+\]) at "
    r"entry \d+ and (?P<other>\[[\d, ]+\])|The image size in a batch should be the same"
)
_SMALLER = (
    "lower train_dataloader.batch_size, set model.backbone.with_cp=True, or crop or "
    "resize the images to a smaller size"
)


def explain(error: BaseException) -> str | None:
    """Return the cause of an error and its remedy in one sentence.

    Args:
        error: Any error; a data loader's worker may have raised it.

    Returns:
        None if the error is not known.
    """
    text = str(error)
    if isinstance(error, torch.OutOfMemoryError):
        reason = text.partition(". GPU")[0].rstrip(".")
        return f"The GPU's memory is full ({reason}): train with --amp, {_SMALLER}."
    if isinstance(error, MemoryError) or _CPU_MEMORY.search(text):
        return f"The machine's memory is full: lower num_workers, {_SMALLER}."
    match = _SIZES.search(text)
    if match:
        sizes = f" ({match['first']} and {match['other']})" if match["first"] else ""
        return (
            f"The images or masks of one batch differ in size{sizes}: crop, resize "
            f"(keep_ratio=False) or pad them to one size in the pipeline, set "
            f"model.data_preprocessor.size to at least the largest, or set "
            f"batch_size=1 in the dataloader."
        )
    return None
