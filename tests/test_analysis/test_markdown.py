from ravlt.analysis.markdown import format_table


def test_cells_are_not_padded():
    assert format_table(["a", "long title"], [[1, "x"], ["", 2.5]]) == (
        "| a | long title |\n|---|---|\n| 1 | x |\n|  | 2.5 |"
    )


def test_a_table_without_rows_keeps_its_head():
    assert format_table(["a"], iter(())) == "| a |\n|---|"
