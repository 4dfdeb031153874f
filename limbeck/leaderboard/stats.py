"""Statistics over seeds: intervals, paired tests, ranks; pure functions of numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from scipy import special  # its Student-t functions; scipy.stats has the same ones but takes a second to import

CONFIDENCE = 0.95
ALPHA = 0.05  # of tests, as CONFIDENCE of intervals
MINIMUM_GAP = 0.5  # points; every metric of which higher is better is in percent
RELATIVE_GAP = 0.05  # of the plain student's figure: distances and losses have no scale in common


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds; std, low and high are None for fewer than two."""

    n: int
    mean: float
    std: float | None = None
    low: float | None = None
    high: float | None = None

    @property
    def half(self) -> float | None:
        """Half the interval's width: what stands behind ±."""
        return None if self.high is None else self.high - self.mean


@dataclass(frozen=True)
class Paired:
    """A difference over shared seeds: its estimate, the two-sided p of the paired t-test (None below two seeds)."""

    seeds: tuple[int, ...]
    difference: Estimate
    p: float | None


def estimate(values: Sequence[float], *, confidence: float = CONFIDENCE) -> Estimate:
    """Mean, sample standard deviation (n − 1) and Student-t interval: mean ± t(n − 1) · std / √n.

    Raises: ValueError for no values.
    """
    n = len(values)
    if n == 0:
        raise ValueError("no values")
    mean = math.fsum(values) / n
    if n < 2:
        return Estimate(n, mean)
    std = 0.0 if _constant(values) else math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (n - 1))
    half = _t_quantile(n - 1, confidence) * std / math.sqrt(n)
    return Estimate(n, mean, std, mean - half, mean + half)


def paired(a: Mapping[int, float], b: Mapping[int, float], *, confidence: float = CONFIDENCE) -> Paired | None:
    """The difference a − b over the seeds that both have; None where they share none.

    Differences without any spread leave the t-test undefined: p is 1 where they are zero, else 0, its limits.
    """
    seeds = tuple(sorted(a.keys() & b.keys()))
    if not seeds:
        return None
    differences = [a[s] - b[s] for s in seeds]
    scale = max(max(abs(a[s]), abs(b[s])) for s in seeds)
    if _constant(differences, scale):  # else rounding noise would pass for an honest spread
        same = 0.0 if abs(differences[0]) <= 1e-10 * scale else math.fsum(differences) / len(seeds)
        found = estimate([same] * len(seeds), confidence=confidence)
        return Paired(seeds, found, None if len(seeds) < 2 else float(same == 0.0))
    found = estimate(differences, confidence=confidence)
    assert found.std is not None
    return Paired(seeds, found, _two_sided(found.mean / (found.std / math.sqrt(found.n)), found.n - 1))


def gained(
    method: Mapping[int, float],
    plain: Mapping[int, float],
    *,
    higher_is_better: bool = True,
    confidence: float = CONFIDENCE,
) -> Paired | None:
    """By how much a method is better than another over the seeds that both have: positive is better, for every metric.

    method − plain, or plain − method where lower is better; see `paired`.
    """
    over, under = (method, plain) if higher_is_better else (plain, method)
    return paired(over, under, confidence=confidence)


def holm(ps: Sequence[float | None]) -> list[float | None]:
    """Holm's step-down adjustment over one family of tests; None stays None and does not count."""
    order = sorted((i for i, p in enumerate(ps) if p is not None), key=lambda i: (ps[i], i))
    adjusted: list[float | None] = [None] * len(ps)
    largest = 0.0
    for position, i in enumerate(order):
        p = ps[i]
        assert p is not None
        largest = max(largest, min(1.0, (len(order) - position) * p))
        adjusted[i] = largest
    return adjusted


def gap_closed(
    method: float, plain: float, teacher: float, *, higher_is_better: bool = True, minimum: float | None = None
) -> float | None:
    """Share of the way from plain student to teacher: (method − plain) / (teacher − plain); 1 is the teacher.

    None where the teacher is not better than the plain student by `minimum`: then there is no gap to close. Where that
    is not given it is 0.5 points, or a twentieth of the plain student's figure where lower is better.
    """
    if minimum is None:
        minimum = MINIMUM_GAP if higher_is_better else RELATIVE_GAP * abs(plain)
    gap = teacher - plain if higher_is_better else plain - teacher
    return None if gap < minimum else (method - plain) / (teacher - plain)


def ranks(estimates: Sequence[Estimate], *, higher_is_better: bool = True) -> list[int | None]:
    """1 + the number of others whose whole interval is better; hence equal where nothing tells two apart from the rest.

    Every one whose interval overlaps the best one's has rank 1. A wide interval can so rank above a better mean: the
    rank says how many are surely better, not who is ahead. None without an interval; such a one outranks nobody.
    """
    sign = 1 if higher_is_better else -1

    def worst(e: Estimate) -> float:
        return sign * _bound(e.low if higher_is_better else e.high)

    def best(e: Estimate) -> float:
        return sign * _bound(e.high if higher_is_better else e.low)

    known = [e for e in estimates if e.low is not None]
    return [None if e.low is None else 1 + sum(worst(o) > best(e) for o in known) for e in estimates]


def overlap(a: Estimate, b: Estimate) -> bool:
    """Whether two intervals touch; one without an interval counts as its mean alone."""
    low_a, high_a = (a.mean, a.mean) if a.low is None or a.high is None else (a.low, a.high)
    low_b, high_b = (b.mean, b.mean) if b.low is None or b.high is None else (b.low, b.high)
    return low_a <= high_b and low_b <= high_a


def _bound(value: float | None) -> float:
    assert value is not None
    return value


def _constant(values: Sequence[float], scale: float | None = None) -> bool:
    size = max(abs(v) for v in values) if scale is None else scale
    return max(values) - min(values) <= 1e-10 * size


def _t_quantile(df: int, confidence: float) -> float:
    return float(special.stdtrit(df, 0.5 + confidence / 2))


def _two_sided(t: float, df: int) -> float:
    return float(2 * special.stdtr(df, -abs(t)))
