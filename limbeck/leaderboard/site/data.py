"""The JSON and CSV files beside the pages: all figures, also those that a page leaves out."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from limbeck.leaderboard.rows import Row
from limbeck.leaderboard.table import Table

Item = TypeVar("Item")


def newest(items: Sequence[Item], limit: int, finished: Callable[[Item], str]) -> list[Item]:
    """Those whose latest run finished last, in their order: what a page shows where all would be too much.

    Args:
        finished: says when, as ISO 8601 in UTC.
    """
    if len(items) <= limit:
        return list(items)
    order = sorted(range(len(items)), key=lambda i: finished(items[i]), reverse=True)
    return [items[i] for i in sorted(order[:limit])]


def left_out(shown: int, count: int, csv_link: str) -> dict[str, Any] | None:
    """What a page says of pairs that it does not show; None where it shows all."""
    return None if shown == count else dict(shown=shown, count=count, link=csv_link)


def write_csv(path: Path, columns: Sequence[Mapping[str, str]], rows: Iterable[Sequence[Mapping[str, Any]]]) -> None:
    """Write a table's cells: what they are sorted by; beside figures with an interval a column with half of it."""
    listed = [list(row) for row in rows]
    halves = [any(row[i]["exact"] is not None for row in listed) for i in range(len(columns))]
    heads = [[c["title"], *([f"{c['title']} ±"] if half else [])] for c, half in zip(columns, halves, strict=True)]
    with path.open("w", encoding="utf-8", newline="") as file:
        lines = csv.writer(file)
        lines.writerow([name for names in heads for name in names])
        for row in listed:
            cells = [[c["value"], *([c["exact"]] if half else [])] for c, half in zip(row, halves, strict=True)]
            lines.writerow([value for values in cells for value in values])


def write_json(path: Path, value: Table | Mapping[str, Any]) -> None:
    """Write a table, with the values of `limbeck.leaderboard.table.to_json`, or a mapping.

    A line an entry, and a line an item of entries that are lists: laid out by hand, for the indenting encoder is slow.
    """
    entries = vars(value) if isinstance(value, Table) else value
    lines = (f" {_text(key)}: {_listed(entry)}" for key, entry in entries.items())
    path.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


def _listed(value: Any) -> str:
    if not isinstance(value, Sequence) or isinstance(value, str) or not value:
        return _text(value)
    return "[\n  " + ",\n  ".join(map(_text, value)) + "\n ]"


def _text(value: Any) -> str:
    return json.dumps(value, default=_fields)


def _fields(value: Any) -> dict[str, Any]:
    """What a frozen dataclass has."""
    return {**vars(value), "n": value.n} if isinstance(value, Row) else vars(value)
