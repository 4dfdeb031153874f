"""Reproduction: two folders of records, cell by cell."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from limbeck.engine.record import RunRecord
from limbeck.leaderboard.checks import MixedRecords, ResultsError
from limbeck.leaderboard.figures import BLANK, grid, interval
from limbeck.leaderboard.stats import Estimate, estimate, overlap
from limbeck.leaderboard.store import Group, Results, load_results
from limbeck.leaderboard.table import decimals

if TYPE_CHECKING:
    from rich.console import Console

Verdict = Literal["identical", "within interval", "differs", "missing"]


@dataclass(frozen=True)
class ReproducedCell:
    """One method of one pair in two folders, in the primary metric.

    shared: seeds that both have; identical: of those, how many have equal values in every metric.
    notes: what else differs: config, limbeck version.
    """

    benchmark: str
    version: int
    pair: str
    method: str
    theirs: Estimate
    ours: Estimate | None
    shared: tuple[int, ...]
    identical: int
    verdict: Verdict
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Reproduction:
    """Two folders of records, cell by cell; only_ours names what the other folder lacks."""

    cells: tuple[ReproducedCell, ...]
    only_ours: tuple[str, ...]

    @property
    def holds(self) -> bool:
        """Whether no cell differs or is missing."""
        return all(c.verdict in ("identical", "within interval") for c in self.cells)


def reproduce(ours: Results, theirs: Results, *, methods: Collection[str] | None = None) -> Reproduction:
    """Look for each of their cells in ours, in the benchmarks that ours has.

    identical: equal values in every shared metric on every shared seed. within interval: the two 95 % t intervals
    touch (a single seed counts as its value). differs: they do not. missing: we have no such record.

    Args:
        methods: look for these alone, teacher and plain student included where named.
    Raises: ResultsError when they share no benchmark; MixedRecords when one was run on different data.
    """
    wanted = None if methods is None else {m.lower() for m in methods}
    known = {g.benchmark for g in ours}
    if not known & {g.benchmark for g in theirs}:
        raise ResultsError(f"{ours.where} and {theirs.where} share no benchmark; run one that {theirs.where} has")
    mine = {(g.benchmark, g.version, g.pair): g for g in ours}
    cells, seen = [], set()
    for group in (g for g in theirs if g.benchmark in known):
        key = (group.benchmark, group.version, group.pair)
        own = mine.get(key)
        if own is not None and own.sample.data.content_hash != group.sample.data.content_hash:
            raise MixedRecords(
                f"{group.name}: the two folders hold results on different data, {own.sample.data.content_hash[:12]}… "
                f"and {group.sample.data.content_hash[:12]}…; nothing can be compared"
            )
        for name, records in _columns(group).items():
            seen.add((*key, name))
            if wanted is not None and name not in wanted:
                continue
            cells.append(_reproduced(group, records, _columns(own).get(name) if own else None))
    extra = [f"{g.name}/{name}" for k, g in mine.items() for name in _columns(g) if (*k, name) not in seen]
    return Reproduction(tuple(cells), tuple(sorted(extra)))


def reproduce_results(ours: str | Path, theirs: str | Path, *, methods: Collection[str] | None = None) -> Reproduction:
    """`reproduce` for two folders of records."""
    return reproduce(load_results(ours), load_results(theirs), methods=methods)


def _columns(group: Group) -> dict[str, Mapping[int, RunRecord]]:
    return {**group.references, **group.students, **group.variants}


def _reproduced(group: Group, theirs: Mapping[int, RunRecord], ours: Mapping[int, RunRecord] | None) -> ReproducedCell:
    method = next(iter(theirs.values())).method
    stated = estimate([r.value for r in theirs.values()])
    where = (group.benchmark, group.version, group.pair, method, stated)
    if not ours:
        return ReproducedCell(*where, None, (), 0, "missing")
    found = estimate([r.value for r in ours.values()])
    shared = tuple(sorted(ours.keys() & theirs.keys()))
    equal = sum(_equal(ours[s].metrics, theirs[s].metrics) for s in shared)
    verdict: Verdict = "differs"
    if shared and equal == len(shared):
        verdict = "identical"
    elif overlap(found, stated):
        verdict = "within interval"
    notes = []
    if any(ours[s].config_hash != theirs[s].config_hash for s in shared):
        notes.append("other config")
    versions = [sorted({r.environment.limbeck for r in side.values()}) for side in (theirs, ours)]
    if versions[0] != versions[1]:
        notes.append(f"limbeck {', '.join(versions[0])} and {', '.join(versions[1])}")
    return ReproducedCell(*where, found, shared, equal, verdict, tuple(notes))


def _equal(a: Mapping[str, float], b: Mapping[str, float]) -> bool:
    shared = a.keys() & b.keys()
    return bool(shared) and all(a[k] == b[k] for k in shared)


def render_reproduction(found: Reproduction, console: Console) -> None:
    """Print a reproduction, one line a cell."""
    from rich.text import Text

    styles = {"identical": "green", "within interval": "green", "differs": "red", "missing": "yellow"}
    for name, cells in groupby(found.cells, key=lambda c: f"{c.benchmark}/{c.pair}"):
        console.print(Text(f"\n{name}", style="bold"))
        lines = grid("method", "theirs", "ours", "equal seeds", "verdict", "notes", words=(0, 4, 5))
        for cell in cells:
            places = decimals([cell.theirs.mean])
            lines.add_row(
                Text(cell.method),
                interval(cell.theirs, places),
                BLANK if cell.ours is None else interval(cell.ours, places),
                f"{cell.identical}/{len(cell.shared)}",
                Text(cell.verdict, style=styles[cell.verdict]),
                Text(", ".join(cell.notes)),
            )
        console.print(lines)
    counts = {v: sum(c.verdict == v for c in found.cells) for v in styles}
    console.print(Text("\n" + ", ".join(f"{n} {v}" for v, n in counts.items() if n), style="bold"))
    if found.only_ours:
        console.print(Text(f"not in theirs: {', '.join(found.only_ours)}", style="dim"))


def reproduction_json(found: Reproduction) -> dict[str, Any]:
    """A reproduction as JSON values."""
    return asdict(found)
