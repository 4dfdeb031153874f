"""Finds its way through a built site for tests: a benchmark's page, and what its plots were drawn from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from limbeck.leaderboard.curves import build_curves
from limbeck.leaderboard.site.curves import place_curves
from limbeck.leaderboard.site.table import group_view, slugs
from limbeck.leaderboard.store import load_results
from limbeck.leaderboard.table import build_tables


def page_of(index: Path, benchmark: str = "toy") -> Path:
    """A benchmark's page."""
    return index.parent / "benchmarks" / f"{benchmark}.html"


def text_of(index: Path, benchmark: str = "toy") -> str:
    """What it says."""
    return page_of(index, benchmark).read_text(encoding="utf-8")


def views_of(folder: Path) -> dict[str, dict[str, Any]]:
    """The views of a folder's groups, with their curves, by slug."""
    results = load_results(folder)
    tables = build_tables(results)
    views = [group_view(t, slug, link=str) for t, slug in zip(tables, slugs(tables), strict=True)]
    place_curves(build_curves(results), views)
    return {view["slug"]: view for view in views}
