"""Markdown tables."""

from collections.abc import Iterable, Sequence


def format_table(titles: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Format a Markdown table without padding, so that a new row changes one line.

    prettytable, which mmseg installs, pads every cell to its column's width, and mmdet
    alone does not install it.

    Args:
        titles: Titles of the columns.
        rows: Cells of each row, one a column.
    """
    lines = [_line(titles), "|" + "---|" * len(titles)]
    return "\n".join([*lines, *map(_line, rows)])


def _line(cells: Sequence[object]) -> str:
    return f"| {' | '.join(map(str, cells))} |"
