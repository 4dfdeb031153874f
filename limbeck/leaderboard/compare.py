"""Comparisons: two methods on shared seeds, and two folders of records cell by cell."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, fields
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from limbeck.engine.config import TEACHER
from limbeck.engine.record import RunRecord
from limbeck.errors import UnknownName
from limbeck.leaderboard.render import BLANK, interval, number, probability
from limbeck.leaderboard.stats import Estimate, Paired, estimate, overlap, paired
from limbeck.leaderboard.store import Group, MixedRecords, Results, ResultsError, load_results
from limbeck.leaderboard.table import CostCells, Row, build_row, decimals, title

if TYPE_CHECKING:
    from rich.console import Console

Verdict = Literal["identical", "within interval", "differs", "missing"]


@dataclass(frozen=True)
class MetricComparison:
    """One metric of two methods: values by shared seed, and a − b."""

    metric: str
    a: dict[int, float]
    b: dict[int, float]
    paired: Paired


@dataclass(frozen=True)
class Comparison:
    """Two methods of one group; cost_ratios are a ÷ b, None where b's is zero or one was not measured."""

    name: str
    a: str
    b: str
    primary: str
    higher_is_better: bool
    metrics: dict[str, MetricComparison]
    cost_ratios: dict[str, float | None]


def compare_methods(group: Group, a: str, b: str) -> Comparison:
    """Compare two methods of a group on the seeds that both have; p is not adjusted: this is one test.

    Raises: UnknownName, ResultsError when they share no seed.
    """
    left, right = group.method(a), group.method(b)
    if not left.keys() & right.keys():
        raise ResultsError(f"{group.name}: {a} and {b} share no seed; run both on the same seeds")
    seeds = sorted(left.keys() & right.keys())
    metrics = {}
    for metric in left[seeds[0]].metrics:
        ours = {s: left[s].metrics[metric] for s in seeds if metric in left[s].metrics}
        theirs = {s: right[s].metrics[metric] for s in seeds if metric in right[s].metrics}
        found = paired(ours, theirs)
        if found is not None:
            shared = found.seeds
            metrics[metric] = MetricComparison(
                metric, {s: ours[s] for s in shared}, {s: theirs[s] for s in shared}, found
            )
    row_a, row_b = build_row({s: left[s] for s in seeds}, ""), build_row({s: right[s] for s in seeds}, "")
    sample = group.sample
    return Comparison(
        name=group.name,
        a=row_a.method,
        b=row_b.method,
        primary=sample.primary_metric,
        higher_is_better=sample.higher_is_better,
        metrics=metrics,
        cost_ratios=_ratios(row_a, row_b),
    )


def compare_benchmark(results: Results, benchmark: str, a: str, b: str, *, pair: str | None = None) -> list[Comparison]:
    """Compare two methods on each pair of a benchmark's highest version that has both.

    Raises: UnknownName for a pair, or a method that no pair has; ResultsError when they share no seed.
    """
    groups = results.benchmark(benchmark)
    if pair is not None:
        known = [g.pair for g in groups]
        if pair not in known:
            raise UnknownName("pair", pair, known, f"in {benchmark}")
        groups = [g for g in groups if g.pair == pair]
    both = [g for g in groups if all(name.lower() in _columns(g) for name in (a, b))]
    return [compare_methods(g, a, b) for g in both or groups[:1]]


def _ratios(a: Row, b: Row) -> dict[str, float | None]:
    ratios: dict[str, float | None] = {}
    for field in fields(CostCells):
        over, under = getattr(a.cost, field.name), getattr(b.cost, field.name)
        ratios[field.name] = over / under if over is not None and under else None
    return ratios


def render_comparison(found: Comparison, console: Console) -> None:
    """Print a comparison: metrics with their test, values by seed, cost ratios."""
    from rich.text import Text

    console.print()
    console.print(Text(f"{found.name}: {found.a} against {found.b}", style="bold"))
    grid = _grid("metric", "seeds", found.a, found.b, f"{found.a} − {found.b}", "p")
    for metric, one in found.metrics.items():
        places = decimals([*one.a.values(), *one.b.values()])
        means = (interval(estimate(list(v.values())), places) for v in (one.a, one.b))
        difference = interval(one.paired.difference, places, sign=True)
        grid.add_row(title(metric), str(len(one.paired.seeds)), *means, difference, probability(one.paired.p))
    console.print(grid)
    console.print()
    primary = found.metrics[found.primary]
    places = decimals([*primary.a.values(), *primary.b.values()])
    seeds = _grid(f"{title(found.primary)} of seed", found.a, found.b, "difference")
    for seed in primary.paired.seeds:
        a, b = primary.a[seed], primary.b[seed]
        seeds.add_row(str(seed), number(a, places), number(b, places), number(a - b, places, sign=True))
    console.print(seeds)
    console.print()
    costs = _grid("cost", f"{found.a} ÷ {found.b}")
    for name, ratio in found.cost_ratios.items():
        costs.add_row(name.replace("_", " "), number(ratio, 2))
    console.print(costs)
    console.print(Text("p: two-sided paired t-test over shared seeds, not adjusted.", style="dim"))


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
        raise ResultsError(f"{ours.folder} and {theirs.folder} share no benchmark; run one that {theirs.folder} has")
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
    teacher = {TEACHER: group.method(TEACHER)} if group.teachers else {}
    return {**teacher, **group.students}


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
        grid = _grid("method", "theirs", "ours", "equal seeds", "verdict", "notes", words=(0, 4, 5))
        for cell in cells:
            places = decimals([cell.theirs.mean])
            grid.add_row(
                Text(cell.method),
                interval(cell.theirs, places),
                BLANK if cell.ours is None else interval(cell.ours, places),
                f"{cell.identical}/{len(cell.shared)}",
                Text(cell.verdict, style=styles[cell.verdict]),
                Text(", ".join(cell.notes)),
            )
        console.print(grid)
    counts = {v: sum(c.verdict == v for c in found.cells) for v in styles}
    console.print(Text("\n" + ", ".join(f"{n} {v}" for v, n in counts.items() if n), style="bold"))
    if found.only_ours:
        console.print(Text(f"not in theirs: {', '.join(found.only_ours)}", style="dim"))


def _grid(*columns: str, words: tuple[int, ...] = (0,)) -> Any:
    from rich import box
    from rich.table import Table as Grid
    from rich.text import Text

    grid = Grid(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=(0, 1))
    for i, name in enumerate(columns):
        grid.add_column(Text(name), justify="left" if i in words else "right", no_wrap=i not in words)
    return grid


def comparison_json(found: Comparison | Reproduction) -> dict[str, Any]:
    """Either kind of comparison as JSON values."""
    return asdict(found)
