"""Reads the documentation's pages: their fenced blocks, by language and title."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
_FENCE = re.compile(
    r"^(?P<tick>```+) *(?P<lang>\w*)(?P<rest>[^\n]*)\n(?P<body>.*?)^(?P=tick) *$", re.DOTALL | re.MULTILINE
)
_TITLE = re.compile(r'title="([^"]+)"')


@dataclass(frozen=True)
class Block:
    """One fenced block of a page."""

    language: str
    title: str | None
    text: str


def blocks(page: Path) -> list[Block]:
    """The fenced blocks of a page, in order."""
    found = []
    for match in _FENCE.finditer(page.read_text(encoding="utf-8")):
        title = _TITLE.search(match["rest"])
        found.append(Block(match["lang"], title[1] if title else None, match["body"]))
    return found


def titled(page: str) -> dict[str, str]:
    """The blocks of a page below docs/ that have a title, by the file name in it."""
    return {Path(b.title).name: b.text for b in blocks(ROOT / "docs" / page) if b.title is not None}


def pages() -> list[Path]:
    """Every page: the README files, the root's documents, and docs/."""
    listed = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "limbeck").rglob("README.md")]
    return sorted(listed)
