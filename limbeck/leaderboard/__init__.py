"""The leaderboard: reads records, refuses what must not be compared, and makes every table, page and comparison."""

from __future__ import annotations

from limbeck.leaderboard.ablation import Ablation, build_ablations
from limbeck.leaderboard.checks import ResultsError
from limbeck.leaderboard.compare import compare_benchmark, compare_methods, render_comparison
from limbeck.leaderboard.curves import Curves, build_curves
from limbeck.leaderboard.render import render, show_tables, to_markdown, update_markdown
from limbeck.leaderboard.reproduce import render_reproduction, reproduce, reproduce_results
from limbeck.leaderboard.site.build import build_site
from limbeck.leaderboard.store import Group, Results, load_results
from limbeck.leaderboard.table import Table, build_table, build_tables, to_json
from limbeck.leaderboard.verify import verify_record

__all__ = [
    "Ablation",
    "Curves",
    "Group",
    "Results",
    "ResultsError",
    "Table",
    "build_ablations",
    "build_curves",
    "build_site",
    "build_table",
    "build_tables",
    "compare_benchmark",
    "compare_methods",
    "load_results",
    "render",
    "render_comparison",
    "render_reproduction",
    "reproduce",
    "reproduce_results",
    "show_tables",
    "to_json",
    "to_markdown",
    "update_markdown",
    "verify_record",
]
