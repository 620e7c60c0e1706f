"""Tables and pictures of benchmarks."""

import csv
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence

from ravlt.analysis.markdown import format_table

_COLUMNS = (
    ("model", "model"),
    ("size", "size"),
    ("batch", "batch"),
    ("params_m", "params (M)"),
    ("gmacs_without_attention", "GMAC, no attention"),
    ("gmacs", "GMAC"),
    ("seconds", "time (s)"),
    ("seconds_min", "fastest"),
    ("seconds_max", "slowest"),
    ("peak_mb", "peak memory (MB)"),
    ("saved_mb", "kept for backward (MB)"),
    ("matmul_share", "share of matmul rate"),
)
_STYLES = ("-o", "--s", "-.^", ":D", "-v", "--P", "-.X", ":*")


def markdown_table(
    rows: Sequence[Mapping], columns: Sequence[tuple[str, str]] = _COLUMNS
) -> str:
    """Sets rows in a Markdown table; columns that no row fills are left out.

    Args:
        rows: Results.
        columns: Their keys, each with its title; a benchmark's if left out.
    """
    columns = [(k, title) for k, title in columns if any(k in row for row in rows)]
    return format_table(
        [title for _, title in columns],
        ([_format(row.get(key)) for key, _ in columns] for row in rows),
    )


def write_csv(
    path: str,
    rows: Sequence[Mapping],
    columns: Sequence[tuple[str, str]] = _COLUMNS,
    mode: str = "x",
) -> None:
    """Writes rows with the columns of the table, into a new file unless told so."""
    with open(path, mode, newline="") as file:
        keys = [key for key, _ in columns]
        writer = csv.DictWriter(file, keys, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)


def group_by(rows: Iterable[Mapping], key: str) -> dict[str, list[Mapping]]:
    """Gives the rows by the value of a key, both in their order."""
    groups: dict[str, list[Mapping]] = {}
    for row in rows:
        groups.setdefault(row[key], []).append(row)
    return groups


def growth(rows: Iterable[Mapping], key: str) -> dict[str, float]:
    """Gives each model's exponent of growth over pixels: 1 is linear, 2 quadratic.

    Args:
        rows: Results; models measured at one size only are left out.
        key: ``'seconds'`` or ``'peak_mb'``.

    Returns:
        The slope of the least-squares line in log-log axes, by model.
    """
    slopes = {}
    for name, points in _by_model(rows, key).items():
        if len(points) > 1:
            x, y = zip(*((math.log(p), math.log(v)) for p, v in points), strict=True)
            slopes[name] = statistics.linear_regression(x, y).slope
    return slopes


def draw(path: str, rows: Sequence[Mapping]) -> None:
    """Draws time and memory over pixels, log-log; lines differ without colour."""
    from matplotlib.figure import Figure  # heavy, and only needed here

    figure = Figure(figsize=(11, 4.5), layout="constrained")
    for axes, key, label in zip(
        figure.subplots(1, 2),
        ("seconds", "peak_mb"),
        ("time (s)", "peak memory beyond weights (MB)"),
        strict=True,
    ):
        for i, (name, points) in enumerate(_by_model(rows, key).items()):
            grey = str(0.6 * i / len(_STYLES))
            axes.plot(
                *zip(*points, strict=True), _STYLES[i % 8], color=grey, label=name
            )
        axes.set(xscale="log", yscale="log", xlabel="pixels", ylabel=label)
        axes.grid(alpha=0.3, which="both")
        axes.legend(fontsize=8)
    figure.savefig(path, dpi=110)


def _by_model(rows: Iterable[Mapping], key: str) -> dict[str, list[tuple[int, float]]]:
    lines: dict[str, list[tuple[int, float]]] = {}
    for row in rows:
        if row.get(key):
            height, width = map(int, row["size"].split("x"))
            lines.setdefault(row["model"], []).append((height * width, row[key]))
    return {name: sorted(points) for name, points in lines.items()}


def _format(value: object) -> str:
    if value is None:
        return ""
    return f"{value:.3g}" if isinstance(value, float) and value < 100 else _whole(value)


def _whole(value: object) -> str:
    return f"{value:.0f}" if isinstance(value, float) else str(value)
