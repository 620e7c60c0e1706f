"""Tables and figure of a comparison of attention mechanisms."""

import statistics
from collections.abc import Iterable, Mapping, Sequence

from ravlt.analysis.speed.report import group_by, markdown_table

COLUMNS = (
    ("task", "task"),
    ("attention", "attention"),
    ("seeds", "seeds"),
    ("miou", "mIoU"),
    ("miou_min", "lowest"),
    ("miou_max", "highest"),
    ("params_k", "params (k)"),
    ("mmacs", "MMAC"),
    ("step_ms", "step (ms)"),
    ("core_before", "core's rank (%)"),
    ("core_after", "trained"),
    ("output_before", "output's rank (%)"),
    ("output_after", "trained"),
)


def summarise(results: Iterable[Mapping], times: Iterable[Mapping]) -> list[dict]:
    """Average the seeds of each task and attention; sort by mIoU within a task.

    Args:
        results: Results of :func:`comparison.run_trial`.
        times: Results of :func:`comparison.time_steps`; trials may be missing.

    Returns:
        Rows with the keys of :data:`COLUMNS`. mIoU is from 0 to 1. Effective ranks are
        percentages of the largest possible rank, averaged over layers and seeds.
    """
    seconds = {(row["task"], row["attention"]): row["seconds"] for row in times}
    groups: dict[tuple[str, str], list[Mapping]] = {}
    for row in results:
        groups.setdefault((row["task"], row["attention"]), []).append(row)
    rows = [_summary(*key, found, seconds.get(key)) for key, found in groups.items()]
    tasks = list(dict.fromkeys(row["task"] for row in rows))
    return sorted(rows, key=lambda row: (tasks.index(row["task"]), -row["miou"]))


def _summary(
    task: str, attention: str, found: Sequence[Mapping], seconds: float | None
) -> dict:
    mious = [row["miou"] for row in found]
    ranks = {
        f"{kind}_{when}": 100
        * statistics.mean(
            layer[kind] / layer["full"]
            for row in found
            for layer in row["ranks"][when].values()
        )
        for kind in ("core", "output")
        for when in ("before", "after")
    }
    return dict(
        task=task,
        attention=attention,
        seeds=len(found),
        miou=statistics.mean(mious),
        miou_min=min(mious),
        miou_max=max(mious),
        params_k=found[0]["params"] / 1e3,
        mmacs=found[0]["macs"] / 1e6,
        step_ms=None if seconds is None else 1e3 * seconds,
        **ranks,
    )


def comparison_tables(rows: Sequence[Mapping]) -> str:
    """Format one Markdown table a task."""
    tables = [
        f"### {task}\n\n{markdown_table(of, COLUMNS[1:])}"
        for task, of in group_by(rows, "task").items()
    ]
    return "\n\n".join(tables)


def draw_comparison(
    path: str, rows: Sequence[Mapping], results: Sequence[Mapping]
) -> None:
    """Draw for each task the mIoU of every seed, and the ranks around training.

    Args:
        path: File of the figure.
        rows: Rows of :func:`summarise`.
        results: Results that the rows summarise.
    """
    from matplotlib.figure import Figure  # slow to import, and only needed here

    by_task = group_by(rows, "task")
    figure = Figure(figsize=(11, 3.6 * len(by_task)), layout="constrained")
    grid = figure.subplots(len(by_task), 2, squeeze=False)
    for (task, of), (left, right) in zip(by_task.items(), grid, strict=True):
        names = [row["attention"] for row in of]
        for y, row in enumerate(of):
            seeds = [
                r["miou"]
                for r in results
                if (r["task"], r["attention"]) == (task, row["attention"])
            ]
            left.plot(seeds, [y] * len(seeds), "o", color="0.6", markersize=4)
            left.plot(row["miou"], y, "|", color="black", markersize=14)
            for kind, style in (("core", "0.6"), ("output", "black")):
                right.annotate(
                    "",
                    (row[f"{kind}_after"], y),
                    (row[f"{kind}_before"], y),
                    arrowprops=dict(arrowstyle="->", color=style, shrinkA=0, shrinkB=0),
                )
                right.plot(row[f"{kind}_before"], y, ".", color=style)
        left.set(title=f"{task}: mIoU, seeds and mean")
        right.set(
            title=f"{task}: effective rank (%), training; core grey, output black"
        )
        right.set_xlim(0, 100)
        for axes in (left, right):
            axes.set_yticks(range(len(names)), names)
            axes.invert_yaxis()
            axes.grid(alpha=0.3)
    figure.savefig(path, dpi=110)
