"""What the site's template shows of how the numbers are made: rules in words, and the environments of the runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from limbeck.engine.config import TEACHER
from limbeck.leaderboard.stats import MINIMUM_GAP, RELATIVE_GAP
from limbeck.leaderboard.store import Results
from limbeck.leaderboard.table import Table, machines_of

SELECTIONS = {
    "last": "last: the weights after the last epoch",
    "best_val": "best_val: the epoch that was best on the validation split",
}
_ENVIRONMENT = {
    "cpu": "CPU",
    "device": "device",
    "threads": "threads",
    "concurrent_jobs": "jobs at once",
    "world_size": "processes",
    "platform": "platform",
    "python": "Python",
    "torch": "torch",
    "limbeck": "limbeck",
    "commit": "commit",
    "runs": "runs",
}


def numbers_view(results: Results, tables: Sequence[Table], *, has_curves: bool) -> dict[str, Any]:
    """Everything that the template shows."""
    rules = sorted({g.first["selection"] for g in results})
    return dict(
        minimum_gap=_minimum_gap(results),
        taught=any(row.from_teacher for table in tables for row in table.rows if row.role != TEACHER),
        lower=any(not g.first["higher"] for g in results),
        selections=[SELECTIONS.get(rule, rule) for rule in rules],
        has_curves=has_curves,
        environment_columns=list(_ENVIRONMENT.values()),
        environments=[_environment(e) for e in machines_of(results.runs)],
    )


def _minimum_gap(results: Results) -> str:
    """The smallest gap that can be closed, in words; of the kinds of primary metrics that are there."""
    kinds = {g.first["higher"] for g in results}
    percent = f"{100 * RELATIVE_GAP:g} %"
    said = {True: f"{MINIMUM_GAP} points better than", False: f"{percent} lower than"}
    return ", or where lower is better less than ".join(said[kind] for kind in sorted(kinds, reverse=True))


def _environment(found: dict[str, Any]) -> list[str]:
    commit = found["git_commit"]
    dirty = " + changes" if found["git_dirty"] else ""
    shown = {**found, "commit": f"{commit[:10]}{dirty}" if commit else "–"}
    return [str(shown[key]) for key in _ENVIRONMENT]
