"""The JSON and CSV files beside the pages: all figures, also those that a page leaves out."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from limbeck.leaderboard.rows import Row
from limbeck.leaderboard.table import Table


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
