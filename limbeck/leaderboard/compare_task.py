"""Two methods over all pairs of a task that have both: whether the difference is real, in words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, cast

from limbeck.errors import ConfigError
from limbeck.leaderboard.figures import number, probability
from limbeck.leaderboard.stats import ALPHA, Estimate, Paired, estimate, gained, holm
from limbeck.leaderboard.table import Table, decimals, title
from limbeck.leaderboard.tasks import check_one_kind, spelling, students_of

FEWEST = 6  # pairs: with fewer the smallest two-sided p of the signed-rank test, 2 / 2ⁿ, is above ALPHA

Verdict = Literal["better", "worse", "not told apart", "not tested"]


@dataclass(frozen=True)
class PairDifference:
    """One pair: by how much a is better than b on shared seeds; positive is better, whichever way the metric goes.

    p: of the paired t-test, Holm-adjusted over the pairs; the unadjusted one is `paired.p`; None for a single seed.
    """

    name: str
    paired: Paired
    p: float | None
    verdict: Verdict


@dataclass(frozen=True)
class TaskComparison:
    """Two methods over pairs.

    over: the mean of the pairs' differences, each counted once, with its t interval over pairs.
    wilcoxon: two-sided p of the signed-rank test over pairs; pairs without difference are left out; None where no pair
        is left.
    left_out: the other pairs, each with the reason.
    """

    metric: str
    higher_is_better: bool
    a: str
    b: str
    pairs: tuple[PairDifference, ...]
    over: Estimate
    wilcoxon: float | None
    left_out: tuple[tuple[str, str], ...]

    def count(self, verdict: Verdict) -> int:
        """In how many pairs this was found."""
        return sum(p.verdict == verdict for p in self.pairs)

    @property
    def summary(self) -> str:
        """What was found, in one sentence of figures."""
        return _summary(self)

    @property
    def conclusion(self) -> str:
        """What may be said from it, and what not."""
        return _conclusion(self)


def compare_task(tables: Sequence[Table], a: str, b: str) -> TaskComparison:
    """Compare two methods, or one with the plain student, on each pair that has both, then over the pairs.

    Args:
        tables: of one kind of primary metric.
    Raises: UnknownName for a method; ConfigError for several kinds of metric, or no pair that has both.
    """
    check_one_kind(tables)
    ours, theirs = spelling(tables, a), spelling(tables, b)
    if ours == theirs:
        raise ConfigError(f"{ours} cannot be compared with itself; name another method")
    found: list[tuple[str, Paired]] = []
    left_out: list[tuple[str, str]] = []
    for table in tables:
        one = _difference(table, ours, theirs)
        if isinstance(one, str):
            left_out.append((table.name, one))
        else:
            found.append((table.name, one))
    if not found:
        raise ConfigError(f"no pair has {ours} and {theirs} on a shared seed; run both on one pair")
    adjusted = holm([paired.p for _, paired in found])
    pairs = tuple(PairDifference(n, paired, p, _verdict(paired, p)) for (n, paired), p in zip(found, adjusted))
    means = [p.paired.difference.mean for p in pairs]
    kind = tables[0]
    return TaskComparison(
        kind.primary, kind.higher_is_better, ours, theirs, pairs, estimate(means), _wilcoxon(means), tuple(left_out)
    )


def _difference(table: Table, a: str, b: str) -> Paired | str:
    """The difference on shared seeds, or why there is none."""
    rows = students_of(table)
    values = []
    for name in (a, b):
        row = rows.get(name.lower())
        if row is None:
            return f"has no {name}"
        if row.flags:
            return f"{name} is {', '.join(row.flags)}"
        values.append(row.cells[table.primary].values)
    return gained(*values, higher_is_better=table.higher_is_better) or f"{a} and {b} share no seed"


def _verdict(paired: Paired, p: float | None) -> Verdict:
    if p is None:
        return "not tested"
    if p >= ALPHA:
        return "not told apart"
    return "better" if paired.difference.mean > 0 else "worse"


def _wilcoxon(means: Sequence[float]) -> float | None:
    from scipy.stats import wilcoxon

    different = [m for m in (round(m, 9) for m in means) if m]
    return float(cast(Any, wilcoxon(different)).pvalue) if different else None


def _summary(found: TaskComparison) -> str:
    n = len(found.pairs)
    said = f"{found.a} is better than {found.b} in {found.count('better')} of {n} pair{'s' * (n > 1)}"
    worse, same, alone = (found.count(v) for v in ("worse", "not told apart", "not tested"))
    said += f", worse in {worse or 'none'}"
    said += f", not told apart in {same}" if same else ""
    said += f", not tested in {alone} (a single seed)" if alone else ""
    over, places = found.over, places_of(found)
    unit = "points" if found.higher_is_better else f"lower in {title(found.metric)}"
    if over.low is None or over.high is None:
        return f"{said}; the difference is {number(over.mean, places, sign=True)} {unit}."
    interval = f"{number(over.low, places, sign=True)} to {number(over.high, places, sign=True)}"
    test = "" if found.wilcoxon is None else f"; Wilcoxon signed-rank p = {probability(found.wilcoxon)}"
    test = test.replace("= <", "< ")
    return f"{said}; over pairs {number(over.mean, places, sign=True)} {unit} (95 % interval {interval}){test}."


def _conclusion(found: TaskComparison) -> str:
    n = len(found.pairs)
    if n == 1:
        return "One pair says nothing about other pairs."
    if found.wilcoxon is None:
        return "The two are equal in every pair."
    different = sum(round(p.paired.difference.mean, 9) != 0 for p in found.pairs)
    if different < FEWEST:
        least = 2 / 2**different
        return (
            f"With {different} pairs that differ the signed-rank test cannot go below p = {least:.2g}, so it cannot "
            "say whether the difference holds for pairs in general; go by the single pairs, or run more."
        )
    if found.wilcoxon >= ALPHA:
        return "No difference is shown over these pairs, which does not mean that there is none."
    better, worse = (found.a, found.b) if found.over.mean > 0 else (found.b, found.a)
    mixed = found.count("better") and found.count("worse")
    tail = ", though not in every pair" if mixed else ""
    return f"The difference is real over these pairs: {better} is better than {worse}{tail}."


def places_of(found: TaskComparison) -> int:
    """Decimals that suit the differences: two for points."""
    return 2 if found.higher_is_better else decimals(p.paired.difference.mean for p in found.pairs)


def task_comparison_json(found: TaskComparison) -> dict[str, Any]:
    """The comparison as JSON values, with its sentences."""
    return {**asdict(found), "summary": found.summary, "conclusion": found.conclusion}
