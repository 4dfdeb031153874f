"""Every name of the reported tables is joined with ours or listed as having none; aliases point at what exists."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from limbeck.engine.config import PairConfig, load_pair, shipped_configs
from limbeck.engine.registry import METHODS
from limbeck.engine.shipped import pair_configs
from limbeck.leaderboard.reported import (
    aliases,
    counterpart,
    no_counterpart,
    reported_gains,
    reported_reruns,
    reported_rows,
    source_rows,
)

ROWS = [*reported_rows(), *reported_gains(), *reported_reruns()]


def used() -> Iterator[tuple[str, str, str]]:
    """(kind, task, printed name) of every row."""
    for row in ROWS:
        yield "methods", row.task, row.method
        yield from (("models", row.task, name) for name in (row.teacher, row.student) if name)
        if row.dataset:
            yield "datasets", row.task, row.dataset


def listed(found: object) -> set[tuple[str, str, str]]:
    kinds = ("methods", "models", "datasets")
    return {
        # an alias of a data set may go by 'data set; schedule'
        (kind, task, name.partition("; ")[0] if kind == "datasets" and found is aliases() else name)
        for kind in kinds
        for task, names in getattr(found, kind).items()
        for name in names
    }


def test_every_name_is_in_exactly_one_file_and_no_file_has_another() -> None:
    joined, alone, needed = listed(aliases()), listed(no_counterpart()), set(used())
    assert needed - joined - alone == set(), "add these to aliases.toml or no_counterpart.toml"
    assert joined & alone == set()
    assert (joined | alone) - needed == set(), "no row has these"


def test_every_source_has_an_id_that_gives_its_rows() -> None:
    assert {row.source_repo for row in reported_rows()} == set(aliases().sources.values())
    assert sum(len(source_rows(identity)) for identity in aliases().sources) == len(reported_rows())


@pytest.fixture(scope="module")
def pairs() -> dict[str, list[PairConfig]]:
    """Benchmark → its pairs, of every shipped config."""
    found: dict[str, list[PairConfig]] = {}
    for name in shipped_configs():
        pair = load_pair(name)
        found.setdefault(pair.benchmark, []).append(pair)
    return found


def test_aliases_point_at_methods_models_and_benchmarks_that_exist(pairs: dict[str, list[PairConfig]]) -> None:
    every = [one for found in pairs.values() for one in found]
    methods = {m for pair in every for m in pair.method_names()} | set(METHODS.names())
    assert {m for task in aliases().methods.values() for m in task.values()} <= methods
    assert {b for task in aliases().datasets.values() for names in task.values() for b in names} <= pairs.keys()
    for task, models in aliases().models.items():
        benchmarks = [b for names in aliases().datasets[task].values() for b in names]
        known = [pair.pair for b in benchmarks for pair in pairs[b]]
        for model in set(models.values()):
            assert any(p.startswith(f"{model}-") or p.endswith(f"-{model}") for p in known), (task, model)


def test_metrics_are_those_of_configs(pairs: dict[str, list[PairConfig]]) -> None:
    primary = {pair.metric.primary for found in pairs.values() for pair in found}
    assert set(aliases().metrics.values()) <= primary


def test_rows_of_a_paper_config_are_the_figures_that_it_reports() -> None:
    """Independent of the alias map: the config's own list of published figures is among the joined rows."""
    pair = load_pair("vision/paper_cifar100_resnet56_resnet20")
    found: dict[str, set[float]] = {}
    for row in reported_rows():
        ours = counterpart(row)
        if ours.pair == pair.pair and pair.benchmark in ours.benchmarks and ours.method:
            found.setdefault(ours.method, set()).add(float(row.distilled_value))
    missing = {m for m, v in pair.reported.items() if m not in ("teacher", "plain") and v not in found.get(m, set())}
    assert missing == set()


def test_names_of_one_task_do_not_reach_another() -> None:
    """CD is channel distillation in classification and consistency distillation in generation."""
    assert {counterpart(r).method for r in ROWS if r.method == "CD"} == {None}
    assert {counterpart(r).method for r in ROWS if r.method == "CD (LPIPS)"} == {"CD"}


def test_label_fractions_lead_to_benchmarks_of_their_own() -> None:
    found = {(r.schedule, counterpart(r).benchmarks) for r in reported_rows() if r.method == "DHO"}
    assert found == {("1% labels", ("imagenet-1pct",)), ("10% labels", ("imagenet-10pct",))}


def test_every_shipped_config_states_its_pair_where_it_is_looked_for(pairs: dict[str, list[PairConfig]]) -> None:
    assert set(pair_configs()) == {(pair.benchmark, pair.pair) for found in pairs.values() for pair in found}
    assert sum(map(len, pair_configs().values())) == sum(map(len, pairs.values()))
