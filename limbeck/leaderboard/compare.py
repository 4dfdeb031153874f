"""Comparisons: two methods, teachers or variants on the seeds that both have."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields, replace
from typing import TYPE_CHECKING, Any

from limbeck.errors import UnknownName
from limbeck.leaderboard.ablation import Ablation, build_ablations
from limbeck.leaderboard.checks import ResultsError
from limbeck.leaderboard.curves import ComparedCurves, Curves, build_curves, compare_curves
from limbeck.leaderboard.figures import grid, interval, number, probability
from limbeck.leaderboard.render_ablation import ablation_note, render_ablations
from limbeck.leaderboard.rows import CostCells, Row, build_row
from limbeck.leaderboard.stats import Paired, estimate, paired
from limbeck.leaderboard.store import Group, Results
from limbeck.leaderboard.table import decimals, title

if TYPE_CHECKING:
    from rich.console import Console


@dataclass(frozen=True)
class MetricComparison:
    """One metric of two methods: values by shared seed, and a − b."""

    metric: str
    a: dict[int, float]
    b: dict[int, float]
    paired: Paired


@dataclass(frozen=True)
class Comparison:
    """Two methods of one group, and the group's ablations.

    cost_ratios: a ÷ b, None where b's is zero or one was not measured.
    curve: both by number of labels, where the group is part of such curves; see `limbeck.leaderboard.curves`.
    """

    name: str
    a: str
    b: str
    primary: str
    higher_is_better: bool
    metrics: dict[str, MetricComparison]
    cost_ratios: dict[str, float | None]
    ablations: tuple[Ablation, ...] = ()
    curve: ComparedCurves | None = None


def compare_methods(group: Group, a: str, b: str) -> Comparison:
    """Compare two methods of a group on the seeds that both have; p is not adjusted: this is one test.

    Args:
        a, b: methods, teachers, or variants such as 'KD@temperature=2.0'.
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
        ablations=build_ablations(group),
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
    both = [g for g in groups if all(_has(g, name) for name in (a, b))]
    curves = [c for c in build_curves(groups) if c.is_primary]
    return [replace(compare_methods(g, a, b), curve=_curve(curves, g, a, b)) for g in both or groups[:1]]


def _curve(curves: list[Curves], group: Group, a: str, b: str) -> ComparedCurves | None:
    return next((compare_curves(c, a, b) for c in curves if group.pair in c.pairs), None)


def _has(group: Group, name: str) -> bool:
    try:
        return bool(group.method(name))
    except UnknownName:
        return False


def _ratios(a: Row, b: Row) -> dict[str, float | None]:
    ratios: dict[str, float | None] = {}
    for field in fields(CostCells):
        over, under = getattr(a.cost, field.name), getattr(b.cost, field.name)
        ratios[field.name] = over / under if over is not None and under else None
    return ratios


def render_comparison(found: Comparison, console: Console, *, ablations: bool = True) -> None:
    """Print a comparison: metrics with their test, values by seed, cost ratios, and the group's ablations."""
    from rich.text import Text

    console.print()
    console.print(Text(f"{found.name}: {found.a} against {found.b}", style="bold"))
    lines = grid("metric", "seeds", found.a, found.b, f"{found.a} − {found.b}", "p")
    for metric, one in found.metrics.items():
        if "@" in metric:
            continue  # the curve's, which is printed by itself
        places = decimals([*one.a.values(), *one.b.values()])
        means = (interval(estimate(list(v.values())), places) for v in (one.a, one.b))
        difference = interval(one.paired.difference, places, sign=True)
        lines.add_row(title(metric), str(len(one.paired.seeds)), *means, difference, probability(one.paired.p))
    console.print(lines)
    if not found.higher_is_better:
        console.print(Text(f"{title(found.primary)}: lower is better, so less than 0 is for {found.a}.", style="dim"))
    console.print()
    primary = found.metrics[found.primary]
    places = decimals([*primary.a.values(), *primary.b.values()])
    seeds = grid(f"{title(found.primary)} of seed", found.a, found.b, "difference")
    for seed in primary.paired.seeds:
        a, b = primary.a[seed], primary.b[seed]
        seeds.add_row(str(seed), number(a, places), number(b, places), number(a - b, places, sign=True))
    console.print(seeds)
    console.print()
    costs = grid("cost", f"{found.a} ÷ {found.b}")
    for name, ratio in found.cost_ratios.items():
        costs.add_row(name.replace("_", " "), number(ratio, 2))
    console.print(costs)
    console.print(Text("p: two-sided paired t-test over shared seeds, not adjusted.", style="dim"))
    if ablations:
        heading = f"{title(found.primary)} {'↑' if found.higher_is_better else '↓'}"
        note = ablation_note(found.ablations, higher_is_better=found.higher_is_better)
        render_ablations(found.ablations, console, found.primary, heading, places, note)


def comparison_json(found: Comparison, *, ablations: bool = True) -> dict[str, Any]:
    """A comparison as JSON values, with the group's ablations or without."""
    raw = asdict(found)
    if not ablations:
        del raw["ablations"]
    return raw
