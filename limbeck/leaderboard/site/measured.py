"""Tables of what was measured beside the records, as Markdown for the terminal."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from limbeck.leaderboard.pictures.plans import Description


def measured_markdown(
    found: Description, columns: Sequence[str], rows: Sequence[Sequence[str]], note: str, words: Collection[str]
) -> str:
    """A group's name, its table, and a note.

    Args:
        words: columns of text; the others are figures.
    """
    rule = ["---" if name in words else "---:" for name in columns]
    lines = ["| " + " | ".join(cells) + " |" for cells in (columns, rule, *rows)]
    heading = f"**{found.benchmark}/{found.pair}** (version {found.benchmark_version})"
    return "\n".join([heading, "", *lines, "", note])
