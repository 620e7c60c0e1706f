"""Tables, files and pictures of a rank analysis."""

import csv
import json
import math
import os
from collections.abc import Callable, Mapping, Sequence

from ravlt.analysis.markdown import format_table
from ravlt.analysis.speed.report import group_by

from .rank import Matrix
from .rank_study import Study

# Columns of the printed table. For a mechanism without alpha its one form stands in
# the column of those with it.
_COLUMNS = {
    "KV": Matrix("kv", True),
    "KV, no alpha": Matrix("kv", False),
    "core": Matrix("output", True, False, False),
    "core x gate": Matrix("output", True, False, True),
    "core + LePE": Matrix("output", True, True, False),
    "(core + LePE) x gate": Matrix("output", True, True, True),
}
_FIGURES = {
    "kv_buffer.png": ("KV", "KV, no alpha"),
    "output.png": ("core", "core x gate", "(core + LePE) x gate"),
}
_STYLES = (
    dict(color="black", linestyle="-"),
    dict(color="0.35", linestyle="--"),
    dict(color="0.6", linestyle=":", linewidth=2.5),
)


def rank_table(found: Study) -> str:
    """Sets effective ranks in a Markdown table: mean of the heads / over all heads."""
    titles = ["layer", "attention", *_COLUMNS, "full KV", "full output"]
    lines = []
    for layer, rows in group_by(found.ranks, "layer").items():
        cells, full = [], {"kv": "", "output": ""}
        for matrix in _COLUMNS.values():
            heads, whole = _select(rows, matrix)
            if whole is None:
                cells.append("")
                continue
            mean = sum(row["effective_rank"] for row in heads) / len(heads)
            cells.append(f"{mean:.1f} / {whole['effective_rank']:.1f}")
            full[matrix.kind] = f"{heads[0]['full_rank']} / {whole['full_rank']}"
        lines.append([layer, rows[0]["attention"], *cells, *full.values()])
    return format_table(titles, lines)


def attention_table(found: Study) -> str:
    """Sets entropies over that of uniform rows, and row sums, of all heads together."""
    sizes = list(dict.fromkeys(row["size"] for row in found.attention))
    columns = ("entropy share {}", "row sum {}")
    titles = [title.format(size) for title in columns for size in sizes]
    lines = []
    for layer, rows in group_by(found.attention, "layer").items():
        for alpha in dict.fromkeys(row["alpha"] for row in rows):
            of = {
                row["size"]: row
                for row in rows
                if row["head"] == "all" and row["alpha"] is alpha
            }
            cells = [_cell(of.get(size), _entropy_share) for size in sizes]
            cells += [_cell(of.get(size), lambda row: row["row_sum"]) for size in sizes]
            with_alpha = {None: "", True: "yes", False: "no"}[alpha]
            lines.append([layer, rows[0]["attention"], with_alpha, *cells])
    return format_table(["layer", "attention", "alpha", *titles], lines)


def write_study(folder: str, found: Study, about: Mapping) -> None:
    """Writes ranks.csv, attention.csv, rank.json, output.png and kv_buffer.png.

    The last is left out where no mechanism has a KV buffer.

    Args:
        folder: New folder, which is made.
        found: The results.
        about: What was measured, for the JSON file.
    """
    os.makedirs(folder)
    for name, rows in (("ranks", found.ranks), ("attention", found.attention)):
        with open(os.path.join(folder, f"{name}.csv"), "x", newline="") as file:
            keys = [key for key in rows[0] if key != "spectrum"]
            writer = csv.DictWriter(file, keys, extrasaction="ignore")
            writer.writeheader()
            writer.writerows(rows)
    with open(os.path.join(folder, "rank.json"), "x") as file:
        json.dump({**about, **vars(found)}, file, indent=1)
    for name, columns in _FIGURES.items():
        _draw(os.path.join(folder, name), found.ranks, columns)


def _draw(path: str, ranks: Sequence[Mapping], columns: Sequence[str]) -> None:
    """One plot a layer: spectra over all heads; lines differ without colour."""
    layers = {
        layer: rows
        for layer, rows in group_by(ranks, "layer").items()
        if _select(rows, _COLUMNS[columns[0]])[1]
    }
    if not layers:  # softmax has no KV buffer
        return
    from matplotlib.figure import Figure  # heavy, and only needed here

    across = min(len(layers), 4)
    down = math.ceil(len(layers) / across)
    figure = Figure(figsize=(4 * across, 3.2 * down), layout="constrained")
    plots = figure.subplots(down, across, squeeze=False).flat
    for (layer, rows), axes in zip(layers.items(), plots, strict=False):
        for style, column in zip(_STYLES, columns, strict=False):
            row = _select(rows, _COLUMNS[column])[1]
            if row is not None:
                label = f"{column}: {row['effective_rank']:.1f}"
                places = range(1, len(row["spectrum"]) + 1)
                axes.plot(places, row["spectrum"], label=label, **style)
        axes.set(yscale="log", ylim=(1e-5, 100), xlabel="index")
        axes.set_title(f"{layer} ({rows[0]['attention']})", fontsize=9)
        axes.grid(alpha=0.3)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.legend(
            fontsize=7, title="effective rank", title_fontsize=7, loc="upper right"
        )
    for axes in plots:  # what is left of the last row
        axes.set_axis_off()
    figure.supylabel("singular value over the largest", fontsize=9)
    figure.savefig(path, dpi=110)


def _select(
    rows: Sequence[Mapping], matrix: Matrix
) -> tuple[list[Mapping], Mapping | None]:
    """The rows of a matrix: of single heads, and over all."""
    alphas = (True, None) if matrix.alpha else (matrix.alpha,)
    of = [
        row
        for row in rows
        if (row["kind"], row["lepe"], row["gate"])
        == (matrix.kind, matrix.lepe, matrix.gate)
        and row["alpha"] in alphas
    ]
    whole = [row for row in of if row["head"] == "all"]
    return [row for row in of if row["head"] != "all"], whole[0] if whole else None


def _entropy_share(row: Mapping) -> float | None:
    if row["entropy"] is None or row["tokens"] == 1:
        return None
    return row["entropy"] / row["entropy_of_uniform"]


def _cell(row: Mapping | None, value: Callable[[Mapping], float | None]) -> str:
    found = None if row is None else value(row)
    return "" if found is None else f"{found:.3f}"
