"""The runs of groups as columns: which records may be compared, and in which row of a table each one is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from limbeck.engine.config import PLAIN, TEACHER, is_teacher
from limbeck.engine.variant import split_variant
from limbeck.leaderboard.checks import Runs, check_baseline, check_initial, check_same
from limbeck.leaderboard.shelf import Shelf

if TYPE_CHECKING:
    import polars as pl

KEYS = ["benchmark", "version", "pair"]
KINDS = ("teacher", "student", "variant")  # in the order of a group's runs


def grouped(chosen: pl.DataFrame, live: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame]:
    """The groups of some records, by key, and their runs.

    Args:
        chosen: rows of the index to group, in the order of their paths.
        live: all rows that may be a teacher of these.
    Returns:
        groups: `group`, its number, `benchmark`, `version`, `pair`.
        runs: the columns of the index, `group`, `kind` (see `KINDS`) and `row`, the name of the table's row; by group,
            kind, plain first, row and seed.
    """
    import polars as pl

    groups = chosen.select(KEYS).unique().sort(KEYS).with_row_index("group")
    mine = chosen.join(groups, on=KEYS, maintain_order="left")
    kind = pl.when("is_variant").then(pl.lit("variant")).otherwise(pl.lit("student")).alias("kind")
    students = mine.filter(~pl.col("is_teacher")).with_columns(kind, row="key")
    runs = pl.concat([_teachers(mine, live, groups), students], how="diagonal")
    later = pl.when(pl.col("kind") == "teacher").then(pl.col("key") != TEACHER).otherwise(pl.col("key") != PLAIN)
    order = ["group", pl.col("kind").cast(pl.Enum(KINDS)), later, "key", "benchmark", "pair", "seed"]
    runs = runs.sort(order, maintain_order=True)
    # a group of teachers alone that others use is none of its own
    used = chosen.select(pl.col("teachers").explode().alias("id")).unique()
    own = runs.filter(pl.col("kind") != "teacher").select("group")
    spare = runs.filter(pl.col("kind") == "teacher").join(used, on="id", how="anti").select("group")
    groups = groups.join(pl.concat([own, spare]).unique(), on="group", how="semi", maintain_order="left")
    return groups, runs.join(groups.select("group"), on="group", how="semi", maintain_order="left")


def _teachers(mine: pl.DataFrame, live: pl.DataFrame, groups: pl.DataFrame) -> pl.DataFrame:
    """The teachers that a pair's runs use, and of its own those that no run uses under their name."""
    import polars as pl

    named = mine.select("group", pl.col("teachers").alias("id")).explode("id").drop_nulls().unique()
    used = named.join(live, on="id")
    own = mine.filter("is_teacher").join(used, on=["group", "key"], how="anti")
    found = pl.concat([used.select(own.columns), own])
    # a teacher of another benchmark may have been measured otherwise
    metric = mine.group_by("group").agg(pl.col("primary").first().alias("wanted"))
    found = found.join(metric, on="group").filter(pl.col("metrics").list.contains(pl.col("wanted"))).drop("wanted")
    found = found.sort("group", pl.col("key") != TEACHER, "key", "benchmark", "pair", "seed")
    places = {number: place for number, *place in groups.select("group", "benchmark", "pair").iter_rows()}
    known: dict[int, list[tuple[str, str, str]]] = {}
    for number, *one in found.select("group", "key", "benchmark", "pair").iter_rows():
        known.setdefault(number, []).append(tuple(one))
    names = [name for number, ones in known.items() for name in reference_names(ones, *places[number])]
    return found.with_columns(pl.lit("teacher").alias("kind"), pl.Series("row", names, dtype=pl.String))


def reference_names(teachers: Sequence[tuple[str, str, str]], benchmark: str, pair: str) -> list[str]:
    """The names of the rows that teachers are in, given their methods in lower case, benchmarks and pairs.

    A student that teaches, such as a teacher assistant, is in the row 'teacher'. Teachers of one name from two pairs
    are two rows; the other pair's says where it is from.
    """
    names = [key if is_teacher(key) else TEACHER for key, *_ in teachers]
    shared = Counter(name for name, _ in dict.fromkeys(zip(names, teachers)))
    found = []
    for name, (key, *place) in zip(names, teachers):
        foreign = shared[name] > 1 and (name != key or place != [benchmark, pair])
        origin = "/".join(place if name == key else [*place, key])
        found.append(f"{name} ({origin})" if foreign else name)
    return found


def reference_rows(runs: pl.DataFrame) -> dict[int, str]:
    """Of each group the teachers' row that the gap closed is measured by: of the record that most runs of methods name.

    Of equally many it is 'teacher', else the first.
    """
    import polars as pl

    students = runs.filter(pl.col("kind") == "student")
    votes = students.group_by("group", pl.col("teacher_record").alias("id")).len("votes")
    teachers = runs.filter(pl.col("kind") == "teacher").select("group", "row", "id")
    teachers = teachers.join(votes, on=["group", "id"], how="left", maintain_order="left")
    rows = teachers.group_by("group", "row", maintain_order=True).agg(pl.col("votes").max().fill_null(0))
    best = rows.sort("group", "votes", pl.col("row") == TEACHER, descending=[False, True, True], maintain_order=True)
    return dict(best.group_by("group", maintain_order=True).agg(pl.col("row").first()).iter_rows())


def check_chosen(chosen: pl.DataFrame, shelf: Shelf) -> None:
    """Refuse records of one benchmark version that were made by different rules or on different data.

    Columns say which benchmarks are suspicious, `check_same` judges their records.

    Raises: MixedRecords, ConfigError.
    """
    import polars as pl

    for method in chosen.filter(~pl.col("is_teacher") & pl.col("is_variant").is_null()).sort(KEYS)["method"].head(1):
        split_variant(method)
    of = KEYS[:2]
    students = chosen.filter(~pl.col("is_teacher"))
    also = chosen.select(*of, "also_names", "also_hashes").explode("also_names", "also_hashes")
    found = [
        chosen.filter(pl.col("selection") == "best_test").select(of),
        _several(students, of, "selection"),
        _several(chosen, of, "content"),
        _several(chosen, of, pl.struct("primary", "higher")),
        _several(students, [*of, "drawn"], "train_hash"),
        _several(also.drop_nulls(), [*of, "also_names"], "also_hashes"),
    ]
    for benchmark in pl.concat([f.select(of) for f in found]).unique().sort(of).iter_rows():
        mine = chosen.filter((pl.col("benchmark") == benchmark[0]) & (pl.col("version") == benchmark[1]))
        check_same([shelf[identity] for identity in mine["id"]])


def _several(rows: pl.DataFrame, by: list[str], what: str | pl.Expr) -> pl.DataFrame:
    import polars as pl

    wanted = pl.col(what) if isinstance(what, str) else what
    return rows.group_by(by).agg(wanted.n_unique().alias("n")).filter(pl.col("n") > 1)


def suspicious(runs: pl.DataFrame) -> list[int]:
    """Numbers of the groups that `check_group` has to look at: the others cannot fail it."""
    import polars as pl

    students = runs.filter(pl.col("kind") != "teacher")
    plain = students.filter((pl.col("kind") == "student") & (pl.col("row") == PLAIN)).select("group", "seed")
    rows = students.select("group", "kind", "row")
    lone = rows.join(
        students.join(plain, on=["group", "seed"], how="semi").select(rows.columns), on=rows.columns, how="anti"
    )
    starts = _several(students, ["group", "seed", "network", "parameters", "flops", "from_teacher"], "initial")
    return pl.concat([lone.select("group"), starts.select("group")])["group"].unique().sort().to_list()


def check_group(students: Runs) -> None:
    """Refuse methods and variants without a plain student, and runs that started from different weights.

    Raises: MissingBaseline, MixedRecords.
    """
    check_baseline(students)
    check_initial(students)
