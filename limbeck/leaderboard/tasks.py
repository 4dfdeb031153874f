"""The tables of one task that may be looked at together: one kind of primary metric, the highest versions."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from limbeck.engine.config import TEACHER
from limbeck.errors import ConfigError, UnknownName
from limbeck.leaderboard.rows import Row
from limbeck.leaderboard.store import Results
from limbeck.leaderboard.table import Table, build_tables


def tables_of_task(results: Results, task: str, *, metric: str | None = None) -> list[Table]:
    """The tables of a task's benchmarks, each in its highest version.

    Args:
        metric: keep the tables with this primary metric.
    Raises: UnknownName for a task or metric that no record has; ConfigError where the benchmarks have primary metrics
        of several kinds and none is chosen: such figures are never averaged.
    """
    found = [g for g in results if g.first["task"] == task]
    if not found:
        raise UnknownName("task", task, {g.first["task"] for g in results}, f"in {results.where}")
    newest = {name: max(g.version for g in found if g.benchmark == name) for name in {g.benchmark for g in found}}
    found = [g for g in found if g.version == newest[g.benchmark]]
    kinds = {(g.first["primary"], g.first["higher"]) for g in found}
    if metric is not None:
        known = {name for name, _ in kinds}
        if metric not in known:
            raise UnknownName("metric", metric, known, f"of {task} in {results.where}")
        found = [g for g in found if g.first["primary"] == metric]
        kinds = {kind for kind in kinds if kind[0] == metric}
    if len(kinds) > 1:
        said = "; ".join(f"{_spelled(k)} of {', '.join(_benchmarks(found, k))}" for k in sorted(kinds))
        raise ConfigError(
            f"the benchmarks of {task} have primary metrics of several kinds, which are not averaged ({said}); "
            "choose one with --metric, or name fewer benchmarks with --benchmark"
        )
    return build_tables(found)


def check_one_kind(tables: Sequence[Table]) -> None:
    """Refuse tables without one primary metric.

    Raises: ConfigError.
    """
    kinds = {(t.primary, t.higher_is_better): t.name for t in tables}
    if len(kinds) > 1:
        said = ", ".join(f"{_spelled(kind)} in {name}" for kind, name in kinds.items())
        raise ConfigError(f"tables with primary metrics of several kinds cannot be compared: {said}; choose one kind")


def students_of(table: Table) -> dict[str, Row]:
    """The rows of plain student and methods by name in lower case."""
    return {r.method.lower(): r for r in table.rows if r.role != TEACHER}


def spelling(tables: Iterable[Table], name: str) -> str:
    """A method's name as its records have it.

    Raises: UnknownName.
    """
    known = {key: row.method for table in tables for key, row in students_of(table).items()}
    if name.lower() not in known:
        raise UnknownName("method", name, known.values(), "in these tables")
    return known[name.lower()]


def _spelled(kind: tuple[str, bool]) -> str:
    return f"{kind[0]} ({'higher' if kind[1] else 'lower'} is better)"


def _benchmarks(groups: Iterable, kind: tuple[str, bool]) -> list[str]:
    return sorted({g.benchmark for g in groups if (g.first["primary"], g.first["higher"]) == kind})
