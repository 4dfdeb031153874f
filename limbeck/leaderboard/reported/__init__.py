"""Reported tables: what others published, with its sources, beside what was measured here and never ranked with it."""

from __future__ import annotations

from limbeck.leaderboard.reported.names import aliases, counterpart, no_counterpart, source_rows
from limbeck.leaderboard.reported.rows import (
    ReportedGain,
    ReportedRerun,
    ReportedRow,
    reported_gains,
    reported_reruns,
    reported_rows,
)
from limbeck.leaderboard.reported.show import render_reported, reported_json, select

__all__ = [
    "ReportedGain",
    "ReportedRerun",
    "ReportedRow",
    "aliases",
    "counterpart",
    "no_counterpart",
    "render_reported",
    "reported_gains",
    "reported_json",
    "reported_reruns",
    "reported_rows",
    "select",
    "source_rows",
]
