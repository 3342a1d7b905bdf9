"""Tables read as they should, line by line and column by column."""

from __future__ import annotations

from typing import Any

from training.tools.measuring.table import Runs, heading, markdown, table, tables_by_column


def test_a_table_has_its_header_and_its_lines() -> None:
    assert markdown(["", "size"], [["PNG", "9"]]).splitlines() == ["| | size |", "|---|---|", "| PNG | 9 |"]


def test_lines_that_were_not_measured_in_a_column_are_empty_there() -> None:
    figures = {"rows": {"a": {"one": {"AVX2 alone": [{"x": 1}]}, "two": {"no bf16 tiles": [{"x": 2}]}}}}
    lines = table(figures, ["a", "missing"], lambda runs: str(runs[0]["x"])).splitlines()
    assert lines == ["| | no bf16 tiles | AVX2 alone |", "|---|---|---|", "| one |  | 1 |", "| two | 2 |  |"]


def test_a_row_has_a_table_for_each_column_that_was_measured() -> None:
    seen: list[tuple[str, dict[str, Runs]]] = []

    def draw(column: str, lines: dict[str, Runs]) -> str:
        seen.append((column, lines))
        return column

    both: dict[str, Any] = {"AVX2 alone": [{"x": 1}], "no bf16 tiles": [{"x": 2}]}
    assert tables_by_column({"ours": both, "PNG": {"AVX2 alone": [{"x": 3}]}}, draw) == "no bf16 tiles\n\nAVX2 alone"
    assert seen == [
        ("no bf16 tiles", {"ours": [{"x": 2}]}),
        ("AVX2 alone", {"ours": [{"x": 1}], "PNG": [{"x": 3}]}),
    ]
    assert tables_by_column({"ours": {}}, draw) == ""


def test_a_heading_names_the_machine() -> None:
    run = {"machine": {"hardware": "a processor", "cores": 2}}
    assert heading("row", "AVX2 alone", run, "texts") == "**row**, AVX2 alone (a processor, 2 cores): texts"
