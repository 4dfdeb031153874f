"""Curves: a figure by number of labels, over rounds of active loops or pairs of several shots, or by network calls."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from statistics import fmean
from typing import Any, Literal

from limbeck.engine.config import PLAIN
from limbeck.engine.record import RunRecord
from limbeck.errors import ConfigError, UnknownName
from limbeck.leaderboard.by_labels import (
    Count,
    Runs,
    calls_of,
    families_of,
    metrics_by_labels,
    rounds_of,
    shared_name,
    shots_of,
    strategy_of,
)
from limbeck.leaderboard.stats import CONFIDENCE, Estimate, Paired, estimate, gained, holm, paired
from limbeck.leaderboard.store import FLAGGED, Group, Results

Kind = Literal["rounds", "shots", "calls"]
AXES: Mapping[Kind, tuple[str, str]] = {  # what is counted along x, and what a point stands at
    "rounds": ("labels", "number of labels"),
    "shots": ("labels a class", "number of labels"),
    "calls": ("network calls an image", "number of network calls"),
}
RANDOM = "Random"  # the registered strategy that a choice is measured by


@dataclass(frozen=True)
class Gain:
    """A difference over shared seeds at one number of labels or calls; positive is better in the primary metric.

    over: the method that it is measured by.
    p: Holm-adjusted over the ranked methods at this number; the unadjusted one is `paired.p`.
    """

    over: str
    paired: Paired
    p: float | None


@dataclass(frozen=True)
class Point:
    """One number of labels or calls: the values by seed, their estimate, the records' ids by seed, and the gains.

    over_plain: None for the plain student. over_random: over the same training with images chosen at random, where
    that is another method than the plain student.
    """

    x: int
    values: dict[int, float]
    estimate: Estimate
    records: dict[int, str]
    over_plain: Gain | None = None
    over_random: Gain | None = None


@dataclass(frozen=True)
class Curve:
    """One method by number of labels or calls.

    strategy: how a loop's images are chosen; None without a loop.
    training: equal for methods that differ in nothing of the model but how images are chosen; 0 is the plain student's.
    """

    method: str
    points: tuple[Point, ...]
    flags: tuple[str, ...] = ()
    strategy: str | None = None
    training: int = 0


@dataclass(frozen=True)
class Curves:
    """All methods' curves of one metric, the plain student first.

    kind: 'rounds' of an active loop, one pair; 'shots' and 'calls', several pairs of a benchmark.
    teacher: its mean of the metric, where it is one for all numbers.
    teacher_calls: network calls that an image takes it, in curves by calls.
    """

    name: str
    benchmark: str
    version: int
    kind: Kind
    pairs: tuple[str, ...]
    metric: str
    is_primary: bool
    higher_is_better: bool | None
    curves: tuple[Curve, ...]
    teacher: float | None = None
    teacher_calls: float | None = None
    confidence: float = CONFIDENCE

    @property
    def axis(self) -> str:
        """What is counted along x."""
        return AXES[self.kind][0]

    @property
    def count(self) -> str:
        """What a point stands at."""
        return AXES[self.kind][1]

    @property
    def xs(self) -> list[int]:
        """Every number, rising."""
        return sorted({point.x for curve in self.curves for point in curve.points})


@dataclass(frozen=True)
class ComparedPoint:
    """Two methods at one number, on the seeds that both have."""

    x: int
    a: Estimate
    b: Estimate
    paired: Paired


@dataclass(frozen=True)
class ComparedCurves:
    """Two methods' curves, and a − b at every number that both have."""

    name: str
    a: str
    b: str
    metric: str
    axis: str
    points: tuple[ComparedPoint, ...]


def build_curves(groups: Iterable[Group]) -> list[Curves]:
    """The curves of some groups, those of each benchmark version in the order of its pairs; variants are left out.

    A group whose records hold metrics 'name@N' is an active loop, and has curves of each such name, the primary metric
    first. Groups of one benchmark version whose training sets differ in their number of shots make one curve together,
    where there are two numbers or more and teacher, student and data are otherwise the same; so do groups of generators
    that take different numbers of network calls an image.
    """
    listed = list(groups)
    found: list[Curves] = []
    rest: list[Group] = []
    for group in listed:
        metrics = metrics_by_labels(group)
        found += _by_rounds(group, metrics) if metrics else []
        rest += [] if metrics else [group]
    found += [_by_pairs(family, "shots", shots_of) for family in families_of(rest, shots_of)]
    found += [_by_pairs(family, "calls", calls_of) for family in families_of(rest, calls_of)]
    place = {(g.benchmark, g.version, g.pair): i for i, g in enumerate(listed)}
    return sorted(found, key=lambda c: min(place[c.benchmark, c.version, pair] for pair in c.pairs))


def curves_of(results: Results, benchmarks: Sequence[str], *, pair: str | None = None) -> list[Curves]:
    """The curves of some benchmarks' highest versions, or those of one pair alone.

    Raises: UnknownName for a benchmark or pair; ConfigError where there is none.
    """
    groups = [g for name in benchmarks for g in results.benchmark(name)]
    found = build_curves(groups)
    if pair is not None:
        known = {g.pair for g in groups}
        if pair not in known:
            raise UnknownName("pair", pair, known, f"of {', '.join(benchmarks)}")
        found = [c for c in found if pair in c.pairs]
    if not found:
        raise ConfigError(
            f"{', '.join(benchmarks)} has no curve by labels or network calls: neither an active loop nor pairs that "
            f"differ in them; name two methods for: limbeck leaderboard compare {benchmarks[0]}"
        )
    return found


def compare_curves(found: Curves, a: str, b: str) -> ComparedCurves | None:
    """a − b by number, over shared seeds; None where a method has no curve, or they share nothing."""
    known = {curve.method.lower(): curve for curve in found.curves}
    left, right = known.get(a.lower()), known.get(b.lower())
    if left is None or right is None:
        return None
    theirs = {point.x: point.values for point in right.points}
    points = []
    for point in left.points:
        difference = paired(point.values, theirs.get(point.x, {}))
        if difference is not None:
            ours, others = ([v[s] for s in difference.seeds] for v in (point.values, theirs[point.x]))
            points.append(ComparedPoint(point.x, estimate(ours), estimate(others), difference))
    if not points:
        return None
    return ComparedCurves(found.name, left.method, right.method, found.metric, found.axis, tuple(points))


def curves_json(found: Curves) -> dict[str, Any]:
    """Curves as JSON values; seeds become strings."""
    return {**asdict(found), "axis": found.axis}


# --- active loops ---


def _by_rounds(group: Group, metrics: Sequence[str]) -> list[Curves]:
    sample, made = group.sample, []
    trainings: list[Any] = []
    facts: dict[str, tuple[str | None, int]] = {}
    for key, seeds in group.students.items():
        first = seeds[min(seeds)]
        model = first.config.get("model")
        if model not in trainings:
            trainings.append(model)
        facts[key] = (strategy_of(first), trainings.index(model))
    randoms = {number: key for key, (strategy, number) in reversed(facts.items()) if strategy == RANDOM}
    for metric in metrics:
        runs = {key: rounds_of(seeds.values(), metric) for key, seeds in group.students.items()}
        references = {key: randoms.get(number) for key, (_, number) in facts.items()}
        primary = metric == sample.primary_metric
        higher = sample.higher_is_better or not primary
        curves = _curves({key: list(s.values()) for key, s in group.students.items()}, runs, references, higher)
        made.append(
            Curves(
                name=group.name,
                benchmark=group.benchmark,
                version=group.version,
                kind="rounds",
                pairs=(group.pair,),
                metric=metric,
                is_primary=primary,
                higher_is_better=sample.higher_is_better if primary else None,
                curves=tuple(
                    replace(curve, strategy=facts[key][0], training=facts[key][1]) for key, curve in curves.items()
                ),
                teacher=_teacher(group) if primary else None,
            )
        )
    return [found for found in made if len(found.xs) > 1]


# --- pairs that differ in their shots or network calls ---


def _by_pairs(family: Sequence[Group], kind: Kind, count: Count) -> Curves:
    sample, first = family[0].sample, family[0]
    runs: dict[str, dict[int, dict[int, tuple[float, str]]]] = {}
    records: dict[str, list[RunRecord]] = {}
    for group in family:
        for key, seeds in group.students.items():
            runs.setdefault(key, {})[count(group) or 0] = {s: (r.value, r.id) for s, r in seeds.items()}
            records.setdefault(key, []).extend(seeds.values())
    teachers = {_teacher(group) for group in family}
    shared = shared_name(family, count)
    return Curves(
        name=f"{first.benchmark}/{shared}" if shared else first.benchmark,
        benchmark=first.benchmark,
        version=first.version,
        kind=kind,
        pairs=tuple(g.pair for g in family),
        metric=sample.primary_metric,
        is_primary=True,
        higher_is_better=sample.higher_is_better,
        curves=tuple(_curves(records, runs, {}, sample.higher_is_better).values()),
        teacher=teachers.pop() if len(teachers) == 1 else None,
        teacher_calls=_teacher(first, "calls") if kind == "calls" else None,
    )


# --- both ---


def _curves(
    records: Mapping[str, Sequence[RunRecord]],
    runs: Mapping[str, Runs],
    randoms: Mapping[str, str | None],
    higher_is_better: bool,
) -> dict[str, Curve]:
    """Curves by method, the plain student's first and the others by name.

    Args:
        records, runs: of each method, by its name in lower case.
        randoms: the method with the same training that chooses at random.
    """
    made: dict[str, Curve] = {}
    for key in sorted(records, key=lambda name: (name != PLAIN, name)):
        if not runs[key]:
            continue  # this metric was not measured
        points = [
            Point(
                x,
                {s: value for s, (value, _) in seeds.items()},
                estimate([value for value, _ in seeds.values()]),
                {s: identity for s, (_, identity) in seeds.items()},
            )
            for x, seeds in sorted(runs[key].items())
        ]
        flags = tuple(status for status in FLAGGED if any(r.status == status for r in records[key]))
        made[key] = Curve(records[key][0].method, tuple(points), flags)
    over_plain = _gains(made, {key: PLAIN for key in made if key != PLAIN}, higher_is_better)
    over_random = _gains(made, {k: r for k in made if (r := randoms.get(k)) and r not in (k, PLAIN)}, higher_is_better)
    return {
        key: replace(
            curve,
            points=tuple(
                replace(p, over_plain=over_plain.get((key, p.x)), over_random=over_random.get((key, p.x)))
                for p in curve.points
            ),
        )
        for key, curve in made.items()
    }


def _gains(curves: Mapping[str, Curve], over: Mapping[str, str], higher_is_better: bool) -> dict[tuple[str, int], Gain]:
    """Of each method, by name and number, over another; p is adjusted over the unflagged ones of one x."""
    values = {(key, p.x): p.values for key, curve in curves.items() for p in curve.points}
    found: dict[tuple[str, int], Gain] = {}
    for x in sorted({x for _, x in values}):
        keys, differences = [], []
        for key, other in over.items():
            pair = values.get((key, x), {}), values.get((other, x), {})
            difference = gained(*pair, higher_is_better=higher_is_better)
            if difference is not None:
                keys.append(key)
                differences.append(difference)
        adjusted = holm([None if curves[k].flags else d.p for k, d in zip(keys, differences)])
        for key, difference, p in zip(keys, differences, adjusted):
            found[key, x] = Gain(curves[over[key]].method, difference, p)
    return found


def _teacher(group: Group, metric: str | None = None) -> float | None:
    """The mean of the primary metric, or another, of the teacher that the gap closed is measured by."""
    if group.reference is None:
        return None
    name = metric or group.sample.primary_metric
    found = [r.metrics.get(name) for r in group.references[group.reference].values()]
    known = [value for value in found if value is not None]
    return fmean(known) if known else None
