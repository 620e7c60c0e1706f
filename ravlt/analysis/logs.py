"""What training runs logged, run beside run."""

import json
from collections.abc import Mapping
from pathlib import Path

from ravlt.errors import RAVLTError

Curve = list[tuple[int, float]]


def read_logs(work_dir: str) -> dict[str, Curve]:
    """Reads every scalar that the runs of a work directory logged.

    Where a run was resumed, the later one counts.

    Args:
        work_dir: As given to ``tools/train.py``.

    Returns:
        Pairs of step and value by name, in the order of the steps.

    Raises:
        RAVLTError: If nothing was logged there.
    """
    points: dict[str, dict[int, float]] = {}
    # Folders are named by the time at which the run began.
    for path in sorted(Path(work_dir).glob("*/vis_data/scalars.json")):
        for line in path.read_text().splitlines():
            entry = json.loads(line)
            step = entry.pop("step", entry.get("iter"))
            for name, value in entry.items():
                if isinstance(value, int | float):
                    points.setdefault(name, {})[step] = value
    if not points:
        raise RAVLTError(
            f"'{work_dir}' has no */vis_data/scalars.json; give a work directory of "
            f"tools/train.py."
        )
    return {name: sorted(values.items()) for name, values in points.items()}


def draw_logs(
    path: str, runs: Mapping[str, Mapping[str, Curve]], keys: list[str]
) -> None:
    """Draws one plot a key, with a line for each run that has it.

    Args:
        path: New picture.
        runs: What :func:`read_logs` gave, by name of the run.
        keys: Names of scalars.

    Raises:
        RAVLTError: If no run has one of the keys.
    """
    from matplotlib.figure import Figure  # heavy, and only needed here

    figure = Figure(figsize=(5.5 * len(keys), 4), layout="constrained")
    (plots,) = figure.subplots(1, len(keys), squeeze=False)
    for axes, key in zip(plots, keys, strict=True):
        for name, curves in runs.items():
            if key in curves:
                axes.plot(*zip(*curves[key], strict=True), ".-", label=name)
        if not axes.lines:
            known = sorted(set().union(*runs.values()))
            raise RAVLTError(f"No run logged '{key}'; known are {', '.join(known)}.")
        axes.set(xlabel="step", ylabel=key)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    figure.savefig(path, dpi=110)
