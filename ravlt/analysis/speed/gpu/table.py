"""The tables of the GPU benchmark, from the journals of its parts."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from ravlt.analysis.speed.report import markdown_table

from .journal import read_rows
from .targets import copy_bandwidth, targets

PARTS = ("tests", "ops", "backbones", "training")
_PLACE = ("operator", "pass", "batch", "heads", "size", "dim")
_MODEL_PLACE = ("model", "precision", "batch", "size")


def render(folder: Path) -> str:
    """Write all results of a folder as Markdown.

    Args:
        folder: Where the journals of the parts are, ``ops.json`` for one.
    """
    machines, parts = {}, {}
    for name in PARTS:
        machines[name], parts[name] = read_rows(folder / f"{name}.json")
    lines = ["# Results on a GPU", ""]
    for name, machine in machines.items():
        text = ", ".join(f"{k}: {v}" for k, v in machine.items()) or "not measured"
        lines += [f"{name}: {text}", ""]
    sections = {
        "Targets": [markdown_table(targets(parts), _as_columns("target reached met"))],
        "Tests": list(_tests(parts["tests"])),
        "Operators: microseconds": list(_operators(parts["ops"])),
        "Kernels of RALA, forward + backward": list(_kernels(parts["ops"])),
        "Backbones: milliseconds, peak memory in MB": list(_models(parts["backbones"])),
        "Training steps: milliseconds, peak memory in MB": list(
            _models(parts["training"])
        ),
        "Failures": list(_failures(parts)),
    }
    for title, texts in sections.items():
        lines += [f"## {title}", "", *(texts or ["Nothing."]), ""]
    return "\n".join(lines)


def _tests(rows: Sequence[Mapping]) -> Iterator[str]:
    if rows:
        outcomes = [row.get("outcome", "failed") for row in rows]
        counts = (f"{outcomes.count(o)} {o}" for o in ("passed", "failed", "skipped"))
        seconds = sum(row.get("seconds", 0.0) for row in rows)
        yield f"{', '.join(counts)} in {seconds:.0f} s."


def _operators(rows: Sequence[Mapping]) -> Iterator[str]:
    """Write a table for each operator, with a column for each form."""
    rate = copy_bandwidth(rows)
    if rate is None:
        return
    yield f"Copy: {rate / 1e12:.2f} TB/s, the bandwidth of all floors."
    timed = [
        row for row in rows if "implementation" in row and row["form"] != "profile"
    ]
    for operator in dict.fromkeys(row["operator"] for row in timed):
        table = []
        for place, group in _group(timed, _PLACE):
            if place["operator"] != operator:
                continue
            line = dict(place)
            for row in group:
                name = f"{row['implementation']}, {row['form']}"
                line[name] = _scaled(row, 1e6)
                if row["implementation"] == "kernels" and "seconds" in row:
                    floor = row["bytes"] / rate
                    line |= {"MB": row["bytes"] / 1e6, "floor": floor * 1e6}
                    share = f"share of copy, {row['form']}"
                    line[share] = f"{floor / row['seconds']:.0%}"
            table.append(line)
        yield ""
        yield markdown_table(table, _columns_of(table))


def _kernels(rows: Sequence[Mapping]) -> Iterator[str]:
    rate = copy_bandwidth(rows)
    table = []
    for row in rows:
        for name, seconds in row.get("kernel_seconds", {}).items():
            line = {key: row[key] for key in ("batch", "heads", "size", "dim")}
            line |= {"kernel": name[:60], "us": seconds * 1e6}
            if name in row["kernel_bytes"] and seconds and rate:
                share = row["kernel_bytes"][name] / seconds / rate
                line["share of copy"] = f"{share:.0%}"
            table.append(line)
    if table:
        yield markdown_table(table, _columns_of(table))


def _models(rows: Sequence[Mapping]) -> Iterator[str]:
    table = []
    for place, group in _group(rows, _MODEL_PLACE):
        line = dict(place)
        for row in group:
            line[row["form"]] = _scaled(row, 1e3)
            if row.get("peak_mb") is not None:
                line[f"memory, {row['form']}"] = row["peak_mb"]
        table.append(line)
    if table:
        yield markdown_table(table, _columns_of(table))


def _failures(parts: Mapping[str, Sequence[Mapping]]) -> Iterator[str]:
    for name, rows in parts.items():
        for row in rows:
            if "failed" in row:
                labels = (str(v) for k, v in row.items() if k not in _RESULTS)
                yield f"- {name}: {', '.join(labels)}: {row['failed']}"


_RESULTS = ("failed", "seconds")


def _scaled(row: Mapping, factor: float) -> float | str:
    return row["seconds"] * factor if "seconds" in row else "failed"


def _group(
    rows: Sequence[Mapping], keys: Sequence[str]
) -> list[tuple[dict, list[Mapping]]]:
    """Gather the rows that agree in some keys."""
    groups: dict[tuple, list[Mapping]] = {}
    for row in rows:
        groups.setdefault(tuple(row[key] for key in keys), []).append(row)
    return [
        (dict(zip(keys, values, strict=True)), group)
        for values, group in groups.items()
    ]


def _columns_of(table: Sequence[Mapping]) -> list[tuple[str, str]]:
    return [(key, key) for key in dict.fromkeys(key for row in table for key in row)]


def _as_columns(names: str) -> list[tuple[str, str]]:
    return [(name, name) for name in names.split()]
