"""Bit-exact comparison of the states that training runs leave."""

from pathlib import Path

import numpy as np
import torch

from ravlt.weights.checkpoint import read_checkpoint

# Entries that differ between equal runs: clocks, folders, the config's text, the start.
_OWN = {"cfg", "experiment_name", "epoch", "iter", "last_ckpt", "best_ckpt"} | {
    "data_time",
    "time",
    "memory",
}


def assert_equal(a, b, place: str = "") -> None:
    """Compare nested containers of tensors exactly."""
    assert type(a) is type(b), place
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b), place
    elif isinstance(a, np.ndarray):
        assert np.array_equal(a, b), place
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), place
        for key in a:
            assert_equal(a[key], b[key], f"{place}.{key}")
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), place
        for index, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_equal(x, y, f"{place}[{index}]")
    else:
        assert a == b, place


def read_state(path: Path) -> dict:
    """Return all that a checkpoint holds, except clocks and folders."""
    checkpoint = read_checkpoint(path)
    meta, hub = checkpoint.pop("meta"), checkpoint.pop("message_hub")
    scalars = {
        name: history.data
        for name, history in hub["log_scalars"].items()
        if name.rpartition("/")[2] not in _OWN
    }
    info = {k: v for k, v in hub["runtime_info"].items() if k not in _OWN}
    best = hub["runtime_info"].get("best_ckpt")
    return checkpoint | {
        "scalars": scalars,
        "info": info,
        "best": best and Path(best).name,
        "place": (meta["epoch"], meta["iter"], meta["seed"]),
    }
