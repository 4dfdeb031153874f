"""Statistics of many groups at once, in columns: the same definitions as `limbeck.leaderboard.stats`.

That module's functions take one row's values; these take all rows of all tables, so that a hundred thousand records
cost seconds. `tests/leaderboard/test_columns.py` holds the two against each other on every committed record.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from limbeck.engine.config import PLAIN, TEACHER
from limbeck.leaderboard.rows import Cell, CostCells, Row
from limbeck.leaderboard.stats import CONFIDENCE, Estimate, Paired
from limbeck.leaderboard.store import FLAGGED

if TYPE_CHECKING:
    import polars as pl

ROW = ["group", "kind", "row"]
_SAME = 1e-10  # relative: rounding noise, not spread; as in `limbeck.leaderboard.stats`
_ESTIMATE = ("n", "mean", "std", "low", "high")


def build_rows(runs: pl.DataFrame) -> dict[int, list[Row]]:
    """Teachers, plain student and methods of each group, without what needs the other rows; variants are left out."""
    import polars as pl

    shown = runs.filter(pl.col("kind") != "variant")
    # every run has its primary metric, so that no list is empty
    values = shown.select(*ROW, "seed", "metrics", "values").explode("metrics", "values")
    cells: dict[tuple[Any, ...], dict[str, Cell]] = {}
    for *key, metric, seeds, found, n, mean, std, low, high in estimated(
        values, [*ROW, "metrics"], "values"
    ).iter_rows():
        made = Cell(metric, dict(zip(seeds, found)), Estimate(n, mean, std, low, high))
        cells.setdefault(tuple(key), {})[metric] = made
    rows: dict[int, list[Row]] = {}
    for one in _heads(shown).iter_rows(named=True):
        rows.setdefault(one["group"], []).append(_row(one, cells[one["group"], one["kind"], one["row"]]))
    return rows


def _heads(shown: pl.DataFrame) -> pl.DataFrame:
    """What is one value a row: costs, names, flags, ids by seed."""
    import polars as pl

    return shown.group_by(ROW, maintain_order=True).agg(
        pl.col("method", "network", "parameters", "flops").first(),
        pl.col("latency").median(),
        pl.col("train_seconds", "memory", "forwards").mean(),
        pl.col("from_teacher").any(),
        pl.col("status").unique(),
        pl.col("assumption").drop_nulls().unique(maintain_order=True),
        pl.col("seed", "id"),
    )


def _row(one: dict[str, Any], cells: dict[str, Cell]) -> Row:
    teacher = one["kind"] == "teacher"
    return Row(
        one["row"] if teacher else one["method"],
        TEACHER if teacher else PLAIN if one["row"] == PLAIN else "method",
        cells,
        CostCells(
            parameters=one["parameters"],
            flops=one["flops"],
            student_latency_ms=one["latency"],
            train_seconds=one["train_seconds"],
            peak_memory_mb=one["memory"],
            teacher_forwards=one["forwards"],
        ),
        dict(zip(one["seed"], one["id"])),
        flags=tuple(s for s in FLAGGED if s in one["status"]),
        network=one["network"],
        assumption=" ".join(filter(None, one["assumption"])) or None,
        from_teacher=one["from_teacher"],
    )


def build_gains(runs: pl.DataFrame) -> dict[int, dict[str, tuple[Paired, float]]]:
    """Of each group and method in lower case the gain over the plain student on shared seeds in the primary metric, and
    the plain student's mean on these; positive is better. Methods without a shared seed are absent.
    """

    found: dict[int, dict[str, tuple[Paired, float]]] = {}
    for number, row, base, seeds, n, mean, std, low, high, p in gains(runs).iter_rows():
        gain = Paired(tuple(seeds), Estimate(n, mean, std, low, high), p)
        found.setdefault(number, {})[row] = gain, base
    return found


def gains(runs: pl.DataFrame) -> pl.DataFrame:
    """The same as columns: group, row, base, seeds, n, mean, std, low, high, p (null below two seeds)."""
    import polars as pl

    students = runs.filter(pl.col("kind") == "student").select("group", "row", "seed", "higher", "value")
    plain = students.filter(pl.col("row") == PLAIN).select("group", "seed", base="value")
    both = students.filter(pl.col("row") != PLAIN).join(plain, on=["group", "seed"], maintain_order="left")
    sign = pl.when("higher").then(1.0).otherwise(-1.0)
    both = both.sort("group", "row", "seed").with_columns(difference=(pl.col("value") - pl.col("base")) * sign)
    by = ["group", "row"]
    scale = pl.max_horizontal(pl.col("value").abs().max(), pl.col("base").abs().max())
    rest = both.group_by(by).agg(
        _mean("base").alias("base"), scale.alias("scale"), pl.col("difference").first().alias("first")
    )
    made = estimated(both, by, "difference").join(rest, on=by, maintain_order="left")
    # differences that are equal but for rounding have no spread, and are zero where they are small beside the values
    spread = pl.col("difference").list.max() - pl.col("difference").list.min()
    constant = spread <= _SAME * pl.col("scale")
    nothing = constant & (pl.col("first").abs() <= _SAME * pl.col("scale"))
    made = made.with_columns(
        mean=pl.when(nothing).then(0.0).otherwise("mean"),
        std=pl.when(constant & (pl.col("n") > 1)).then(0.0).otherwise("std"),
    )
    made = _with_interval(made)
    t = pl.col("mean") / (pl.col("std") / pl.col("n").sqrt())
    limit = pl.when(pl.col("mean") == 0.0).then(1.0).otherwise(0.0)
    p = pl.when(pl.col("n") < 2).then(None).when(constant).then(limit).otherwise(_two_sided(made, t))
    return made.with_columns(p=p).select(*by, "base", "seed", *_ESTIMATE, "p")


def estimated(values: pl.DataFrame, by: Sequence[str], value: str) -> pl.DataFrame:
    """Of each group of rows the lists `seed` and `value`, and n, mean, std, low and high as `stats.estimate` has."""
    import polars as pl

    column = pl.col(value)
    constant = column.max() - column.min() <= _SAME * column.abs().max()
    made = values.group_by(by, maintain_order=True).agg(
        pl.col("seed"),
        column,
        pl.len().alias("n"),
        _mean(value).alias("mean"),
        pl.when(constant & (pl.len() > 1)).then(0.0).otherwise(column.std()).alias("std"),
    )
    return _with_interval(made)


def _mean(column: str) -> pl.Expr:
    """A mean that is corrected by the mean of what it leaves, which a sum of rounded terms does not reach."""
    import polars as pl

    first = pl.col(column).mean()
    return first + (pl.col(column) - first).mean()


def _with_interval(made: pl.DataFrame) -> pl.DataFrame:
    import numpy as np
    import polars as pl
    from scipy import special

    n = made["n"].to_numpy().astype(float)
    quantile = special.stdtrit(np.maximum(n - 1, 1), 0.5 + CONFIDENCE / 2)
    half = pl.Series(quantile / np.sqrt(n)) * made["std"]
    return made.with_columns(low=made["mean"] - half, high=made["mean"] + half)


def _two_sided(made: pl.DataFrame, t: pl.Expr) -> pl.Series:
    import numpy as np
    import polars as pl
    from scipy import special

    found = made.select(t.alias("t"), "n")
    statistic = found["t"].fill_null(np.nan).to_numpy()
    df = np.maximum(found["n"].to_numpy().astype(float) - 1, 1)
    return pl.Series(2 * special.stdtr(df, -np.abs(statistic)))
