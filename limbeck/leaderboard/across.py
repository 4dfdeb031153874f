"""Methods over several pairs: average gain, average rank, Friedman test, and who is not told apart by Nemenyi's test.

Demšar, Statistical Comparisons of Classifiers over Multiple Data Sets, JMLR 7 (2006), sections 3.2.2 and 3.2.3: a pair
is what a data set is there, and has one figure a method, the mean over seeds. The tests and the diagram are those of
scikit-posthocs and SciPy.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from html import escape
from io import StringIO
from typing import TYPE_CHECKING, Any

from limbeck.engine.config import PLAIN
from limbeck.errors import ConfigError, ExtraMissing
from limbeck.leaderboard.stats import ALPHA, Estimate, estimate
from limbeck.leaderboard.table import Table
from limbeck.leaderboard.tasks import check_one_kind, spelling, students_of

if TYPE_CHECKING:
    import pandas

FEWEST = 2  # pairs
INK = "#000000"  # matplotlib's; the page's own colour of text takes its place in the diagram


@dataclass(frozen=True)
class MethodAcross:
    """One method over the pairs.

    gain: over the plain student, the mean of the pairs' gains with the t interval over pairs; positive is better.
    gains: the pairs' own, in the order of `Across.pairs`.
    rank: the mean of its ranks; of equally good methods each has the mean of the ranks that they share.
    ahead: in how many pairs it is better than the plain student.
    """

    method: str
    gain: Estimate
    gains: tuple[float, ...]
    rank: float
    ahead: int


@dataclass(frozen=True)
class Across:
    """Methods over the pairs that have all of them, best average rank first; the plain student is one of them.

    left_out: the other pairs, each with the reason.
    statistic, p: Friedman's test that all are equally good; None for fewer than three methods.
    critical_difference: of average ranks, by Nemenyi's test at `alpha`; None where Friedman's was not made.
    nemenyi: p of each two methods, in the order of `methods`.
    cliques: the largest sets of methods that are not told apart, of two or more; all where Friedman's p is not below
        `alpha`, for then no two are.
    chosen: whether the methods were named by the caller.
    """

    metric: str
    higher_is_better: bool
    pairs: tuple[str, ...]
    methods: tuple[MethodAcross, ...]
    left_out: tuple[tuple[str, str], ...]
    statistic: float | None
    p: float | None
    critical_difference: float | None
    nemenyi: tuple[tuple[float, ...], ...]
    cliques: tuple[tuple[str, ...], ...]
    alpha: float = ALPHA
    chosen: bool = False

    @property
    def told_apart(self) -> bool:
        """Whether Friedman's test says that not all are equally good."""
        return self.p is not None and self.p < self.alpha


def across(tables: Sequence[Table], methods: Sequence[str] | None = None) -> Across:
    """Compare methods over all pairs of some tables that have each of them, unflagged, with seeds of the plain student.

    Args:
        tables: of one kind of primary metric.
        methods: names in any case; if not given, those that together fill the largest number of methods × pairs.
    Raises: ConfigError for several kinds of metric, or fewer than two pairs that have all; UnknownName for a method;
        ExtraMissing without scikit-posthocs.
    """
    if not tables:
        raise ConfigError("no table to compare methods over; name a task that has records")
    check_one_kind(tables)
    table = tables[0]
    named = None if methods is None else [spelling(tables, m).lower() for m in dict.fromkeys(methods)]
    keys = _fullest(tables) if named is None else [k for k in dict.fromkeys(named) if k != PLAIN]
    if not keys:
        raise ConfigError("no method beside the plain student to compare; name one, or run one on two pairs")
    spelled = [spelling(tables, k) for k in keys]
    reasons = {t.name: _reason(t, spelled) for t in tables}
    whole = [t for t in tables if reasons[t.name] is None]
    left_out = tuple((name, reason) for name, reason in reasons.items() if reason is not None)
    if len(whole) < FEWEST:
        raise ConfigError(
            f"{len(whole)} of {len(tables)} pairs have {', '.join(spelled)} beside the plain student; {FEWEST} are the "
            "fewest; name fewer methods, or run them on more pairs"
        )
    columns = [[_gain(t, k) for k in (PLAIN, *keys)] for t in whole]
    made = _methods([spelling(tables, PLAIN), *spelled], columns)
    ordered = [m.gains for m in made]
    statistic, p, difference, nemenyi = _tests(ordered)
    told = p is not None and p < ALPHA
    names = [m.method for m in made]
    return Across(
        metric=table.primary,
        higher_is_better=table.higher_is_better,
        pairs=tuple(t.name for t in whole),
        methods=made,
        left_out=left_out,
        statistic=statistic,
        p=p,
        critical_difference=difference,
        nemenyi=nemenyi,
        cliques=_cliques(names, nemenyi) if told else (tuple(names),),
        chosen=methods is not None,
    )


def _fullest(tables: Sequence[Table]) -> list[str]:
    """The methods, those of most pairs first, up to where methods × pairs that have all of them is largest."""
    usable = [{k for k in students_of(t) if k != PLAIN and _reason(t, [k]) is None} for t in tables]
    counts = Counter(k for keys in usable for k in keys)
    order = sorted(counts, key=lambda k: (-counts[k], k))
    sizes = []
    for length in range(1, len(order) + 1):
        pairs = sum(keys.issuperset(order[:length]) for keys in usable)
        sizes.append((length * pairs if pairs >= FEWEST else 0, pairs, length))
    return order[: max(sizes)[2]] if sizes else []


def _reason(table: Table, methods: Iterable[str]) -> str | None:
    """Why a pair is left out; None where it has every method."""
    rows = students_of(table)
    for name in (PLAIN, *methods):
        row = rows.get(name.lower())
        if row is None:
            return f"has no {'plain student' if name == PLAIN else name}"
        if row.flags:
            return f"{row.method} is {', '.join(row.flags)}"
        if name != PLAIN and row.gain is None:
            return f"{row.method} shares no seed with the plain student"
    return None


def _gain(table: Table, key: str) -> float:
    gain = students_of(table)[key].gain
    return 0.0 if gain is None else gain.difference.mean  # of the plain student over itself


def _methods(names: Sequence[str], columns: Sequence[Sequence[float]]) -> tuple[MethodAcross, ...]:
    ranks = _ranks(columns)
    made = []
    for i, name in enumerate(names):
        gains = tuple(c[i] for c in columns)
        rank = math.fsum(r[i] for r in ranks) / len(ranks)
        made.append(MethodAcross(name, estimate(gains), gains, rank, sum(g > 0 for g in gains)))
    return tuple(sorted(made, key=lambda m: (m.rank, -m.gain.mean, m.method)))


def _ranks(columns: Sequence[Sequence[float]]) -> Sequence[Sequence[float]]:
    """Of each pair the methods' ranks, 1 for the largest gain; equal up to rounding noise share the mean of theirs."""
    import numpy as np
    from scipy.stats import rankdata

    return rankdata(-np.round(np.asarray(columns), 9), axis=1).tolist()


def _tests(
    gains: Sequence[Sequence[float]],
) -> tuple[float | None, float | None, float | None, tuple[tuple[float, ...], ...]]:
    """Friedman's statistic and p, Nemenyi's critical difference (eq. in section 3.2.2) and p of each two methods."""
    import numpy as np
    from scipy.stats import friedmanchisquare, studentized_range

    count, pairs = len(gains), len(gains[0])
    rounded = np.round(np.asarray(gains), 9)  # (methods, pairs)
    if count < 3:
        return None, None, None, ()
    if (rounded == rounded[:1]).all():  # all equal in every pair leaves the statistic undefined
        return 0.0, 1.0, None, tuple((1.0,) * count for _ in gains)
    found = friedmanchisquare(*rounded)
    quantile = float(studentized_range.ppf(1 - ALPHA, count, np.inf)) / math.sqrt(2)
    difference = quantile * math.sqrt(count * (count + 1) / (6 * pairs))
    matrix = _posthocs().posthoc_nemenyi_friedman(-rounded.T)
    return float(found.statistic), float(found.pvalue), difference, tuple(map(tuple, matrix.to_numpy().tolist()))


def _posthocs() -> Any:
    try:
        import scikit_posthocs
    except ImportError as error:
        raise ExtraMissing("Nemenyi's test across pairs", "stats") from error
    return scikit_posthocs


def _cliques(names: Sequence[str], nemenyi: Sequence[Sequence[float]]) -> tuple[tuple[str, ...], ...]:
    """Runs of neighbours by rank whose ends are not told apart, without those inside another."""
    found: list[tuple[int, int]] = []
    for first in range(len(names)):
        last = max(i for i in range(first, len(names)) if i == first or nemenyi[first][i] >= ALPHA)
        if last > first and (not found or last > found[-1][1]):
            found.append((first, last))
    return tuple(tuple(names[a : b + 1]) for a, b in found)


def across_svg(found: Across) -> str:
    """The critical-difference diagram as an SVG element, for a page or a file.

    Raises: ConfigError where no test was made; ExtraMissing without scikit-posthocs.
    """
    if found.p is None or not found.nemenyi:
        raise ConfigError("a critical-difference diagram needs three methods, the plain student included; name more")
    posthocs = _posthocs()
    import matplotlib
    import pandas
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    # a dollar would start a formula
    labels = [m.method.replace("$", r"\$") for m in found.methods]
    same = [[1.0] * len(labels) for _ in labels]
    matrix: pandas.DataFrame = pandas.DataFrame(
        found.nemenyi if found.told_apart else same, index=labels, columns=labels
    )
    text = StringIO()
    # text stays text, and equal figures give equal files
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "limbeck", "font.size": 10}):
        figure = Figure(figsize=(8, 1.4 + 0.22 * len(labels)))
        FigureCanvasAgg(figure)
        posthocs.critical_difference_diagram(
            dict(zip(labels, (m.rank for m in found.methods))),
            matrix,
            alpha=found.alpha,
            ax=figure.add_subplot(),
            color_palette=dict.fromkeys(labels, INK),
            label_fmt_left="{label} ({rank:.2f})",
            label_fmt_right="({rank:.2f}) {label}",
        )
        figure.savefig(
            text, format="svg", bbox_inches="tight", transparent=True, metadata={"Date": None, "Creator": None}
        )
    drawn = text.getvalue().replace(INK, "currentColor")  # a page in dark mode has light text
    return drawn[drawn.index("<svg") :].replace("<svg", f'<svg role="img" aria-label="{escape(_spoken(found))}"', 1)


def _spoken(found: Across) -> str:
    ranks = ", ".join(f"{m.method} {m.rank:.2f}" for m in found.methods)
    bars = "; ".join(", ".join(c) for c in found.cliques) or "none"
    return f"Average ranks over {len(found.pairs)} pairs: {ranks}. Not told apart: {bars}."


def across_json(found: Across) -> dict[str, Any]:
    """The comparison as JSON values."""
    return asdict(found)
