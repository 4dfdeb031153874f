"""The statistics against other libraries, tables and hand calculation."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from limbeck.leaderboard.stats import Estimate, estimate, gap_closed, holm, overlap, paired, ranks

values = st.lists(st.floats(-100, 100, allow_nan=False), min_size=2, max_size=8)
# two-sided 95 % quantiles as printed in tables of Student's t
T_TABLE = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 9: 2.262, 29: 2.045}


@pytest.mark.parametrize(("df", "quantile"), T_TABLE.items())
def test_interval_uses_tabulated_quantile(df: int, quantile: float) -> None:
    sample = list(np.random.default_rng(df).normal(70, 2, df + 1))
    found = estimate(sample)
    assert found.half == pytest.approx(quantile * np.std(sample, ddof=1) / math.sqrt(df + 1), rel=2e-4)
    assert found.mean == pytest.approx(np.mean(sample))
    assert found.std == pytest.approx(np.std(sample, ddof=1))


def test_interval_by_hand() -> None:
    found = estimate([1.0, 2.0, 3.0])
    assert (found.n, found.mean, found.std) == (3, 2.0, 1.0)
    assert found.low == pytest.approx(2 - 4.302653 / math.sqrt(3), abs=1e-6)
    assert found.high == pytest.approx(2 + 4.302653 / math.sqrt(3), abs=1e-6)


@given(values)
def test_interval_agrees_with_scipy_stats(sample: list[float]) -> None:
    found = estimate(sample)
    std = np.std(sample, ddof=1)
    if std > 1e-6:
        low, high = scipy.stats.t.interval(0.95, len(sample) - 1, loc=np.mean(sample), scale=scipy.stats.sem(sample))
        assert found.low == pytest.approx(low, rel=1e-6, abs=1e-6)
        assert found.high == pytest.approx(high, rel=1e-6, abs=1e-6)


def test_one_value_has_no_interval() -> None:
    assert estimate([3.0]) == Estimate(1, 3.0)
    assert estimate([3.0]).half is None
    with pytest.raises(ValueError, match="no values"):
        estimate([])


@given(st.integers(2, 9), st.integers(0, 10_000))
def test_paired_agrees_with_scipy_ttest_rel(n: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    a, b = rng.normal(71, 1, n), rng.normal(70, 1, n)
    found = paired(dict(enumerate(a)), dict(enumerate(b)))
    assert found is not None
    reference = scipy.stats.ttest_rel(a, b)
    assert found.p == pytest.approx(reference.pvalue, rel=1e-7)
    interval = reference.confidence_interval(0.95)
    assert found.difference.low == pytest.approx(interval.low)
    assert found.difference.high == pytest.approx(interval.high)


def test_paired_takes_shared_seeds_only() -> None:
    found = paired({0: 1.0, 1: 2.0, 5: 99.0}, {1: 1.5, 0: 0.0, 7: -99.0})
    assert found is not None
    assert found.seeds == (0, 1)
    assert found.difference.mean == 0.75
    assert paired({0: 1.0}, {1: 1.0}) is None


def test_paired_one_seed_has_no_p() -> None:
    found = paired({0: 2.0}, {0: 1.0})
    assert found is not None
    assert (found.difference.mean, found.p, found.difference.low) == (1.0, None, None)


@pytest.mark.parametrize(
    ("a", "b", "difference", "p"),
    [
        ([70.0, 71.0, 72.0], [70.0, 71.0, 72.0], 0.0, 1.0),
        ([0.0, 0.0], [0.0, 0.0], 0.0, 1.0),
        ([70.1, 71.1, 72.1], [70.0, 71.0, 72.0], 0.1, 0.0),  # equal but for float noise
        ([70.0, 70.0], [71.0, 71.0], -1.0, 0.0),
    ],
)
def test_paired_without_spread_gives_limits_silently(
    a: list[float], b: list[float], difference: float, p: float
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = paired(dict(enumerate(a)), dict(enumerate(b)))
    assert found is not None
    assert found.p == p
    assert found.difference.mean == pytest.approx(difference)
    assert found.difference.std == 0.0


def test_holm_by_hand() -> None:
    # 4 tests: 0.005·4, then 0.01·3, 0.03·2, 0.04·1 lifted to the one before
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, None, 0.9]) == [1.0, None, 1.0]
    assert holm([]) == []


@given(st.lists(st.floats(0, 1), max_size=8))
def test_holm_agrees_with_naive_loop(ps: list[float]) -> None:
    found = holm(ps)
    order = np.argsort(ps, kind="stable")
    for position, index in enumerate(order):
        naive = max(min(1.0, (len(ps) - k) * ps[order[k]]) for k in range(position + 1))
        assert found[index] == pytest.approx(naive)


def test_gap_closed() -> None:
    assert gap_closed(72.0, 70.0, 74.0) == 0.5
    assert gap_closed(69.0, 70.0, 74.0) == -0.25
    assert gap_closed(70.2, 70.0, 70.4) is None
    assert gap_closed(72.0, 70.0, 68.0) is None  # a worse teacher leaves no gap
    assert gap_closed(8.0, 10.0, 6.0, higher_is_better=False) == 0.5
    assert gap_closed(8.0, 10.0, 9.8, higher_is_better=False) is None


def test_ranks_by_hand() -> None:
    best, near, far = Estimate(5, 90, 1, 89, 91), Estimate(5, 89, 1, 88, 89.5), Estimate(5, 80, 1, 79, 81)
    assert ranks([far, best, near]) == [3, 1, 1]
    assert ranks([far, best, near], higher_is_better=False) == [1, 2, 2]
    assert ranks([far, Estimate(1, 99), best]) == [2, None, 1]
    between = Estimate(5, 88, 1, 87, 88.5)  # overlaps `near`, but not the best
    assert ranks([best, near, between]) == [1, 1, 2]


estimates = st.lists(
    st.builds(lambda m, h: Estimate(5, m, 1.0, m - h, m + h), st.integers(0, 50), st.integers(0, 10)),
    min_size=1,
    max_size=8,
)


@given(estimates, st.randoms(use_true_random=False), st.booleans())
def test_ranks_do_not_depend_on_order(found: list[Estimate], random: object, higher: bool) -> None:
    shuffled = list(found)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    before = dict(zip(found, ranks(found, higher_is_better=higher)))
    assert dict(zip(shuffled, ranks(shuffled, higher_is_better=higher))) == before


@given(estimates)
def test_ranks_tie_with_best_exactly_where_intervals_overlap(found: list[Estimate]) -> None:
    placed = ranks(found)
    best = max(found, key=lambda e: e.low if e.low is not None else -1)
    for one, rank in zip(found, placed):
        assert (rank == 1) == overlap(one, best)
    assert min(r for r in placed if r is not None) == 1


@given(estimates)
def test_ranks_mirror_for_lower_is_better(found: list[Estimate]) -> None:
    mirrored = [
        Estimate(e.n, -e.mean, e.std, -e.high, -e.low) for e in found if e.low is not None and e.high is not None
    ]
    assert ranks(found) == ranks(mirrored, higher_is_better=False)


@given(values, values)
def test_overlap_is_symmetric_and_holds_for_self(a: list[float], b: list[float]) -> None:
    one, two = estimate(a), estimate(b)
    assert overlap(one, two) == overlap(two, one)
    assert overlap(one, one)


@given(values, st.floats(-50, 50))
def test_interval_moves_with_its_values(sample: list[float], by: float) -> None:
    one, two = estimate(sample), estimate([v + by for v in sample])
    assert two.mean == pytest.approx(one.mean + by, abs=1e-9)
    assert two.half == pytest.approx(one.half, abs=1e-6)
