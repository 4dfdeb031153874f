"""What the index holds of one record: all that checks, groups and tables need; the rest is read when asked for."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from typing import Any

from limbeck.engine.config import is_teacher
from limbeck.engine.record import RunRecord
from limbeck.engine.variant import split_variant
from limbeck.errors import ConfigError
from limbeck.leaderboard.checks import drawn, taught, teacher_ids

COLUMNS: dict[str, Any] = dict(  # as polars reads them
    id=str,
    status=str,
    task=str,
    benchmark=str,
    version=int,
    pair=str,
    method=str,
    key=str,  # the method in lower case
    is_teacher=bool,
    is_variant=bool,  # null where the name is none that can be read
    seed=int,
    primary=str,
    higher=bool,
    value=float,  # of the primary metric
    selection=str,
    content=str,  # hash and split of the test data
    train_hash=str,
    drawn=str,  # what training data is compared by
    also_names=list[str],
    also_hashes=list[str],
    data=str,  # JSON
    environment=str,  # JSON
    network=str,
    parameters=int,
    flops=int,
    initial=str,
    from_teacher=bool,
    teachers=list[str],
    teacher_record=str,
    plain_record=str,
    assumption=str,
    latency=float,
    train_seconds=float,
    memory=float,
    forwards=int,
    shots=int,  # labelled images a class
    metrics=list[str],
    values=list[float],
    parts=list[str],  # registered names that it is built of
    finished=str,
)


def row_of(record: RunRecord) -> tuple[Any, ...]:
    """One record's values of `COLUMNS`."""
    cost, student = record.cost, record.student
    return (
        record.id,
        record.status,
        record.task,
        record.benchmark,
        record.benchmark_version,
        record.pair,
        record.method,
        record.method.lower(),
        is_teacher(record.method),
        _is_variant(record.method),
        record.seed,
        record.primary_metric,
        record.higher_is_better,
        record.value,
        record.recipe.selection,
        f"{record.data.content_hash} ({record.data.split})",
        record.data.train_hash,
        json.dumps(drawn(record), default=str),
        list(record.data.also),
        [d.content_hash for d in record.data.also.values()],
        record.data.model_dump_json(),
        record.environment.model_dump_json(),
        student.name,
        student.parameters,
        student.flops,
        record.initial_hash,
        taught(record),
        list(teacher_ids(record)),
        record.teacher_record,
        record.plain_record,
        record.assumption,
        cost.student_latency_ms,
        cost.train_seconds,
        cost.peak_memory_mb,
        cost.teacher_forwards,
        shots_of_record(record),
        list(record.metrics),
        list(record.metrics.values()),
        parts_of(record),
        record.finished,
    )


@cache
def _is_variant(method: str) -> bool | None:
    try:
        return split_variant(method)[1] is not None
    except ConfigError:
        return None


def train_of(record: RunRecord) -> Mapping[str, Any]:
    """The config of a run's training split; empty where it has none."""
    data = record.config.get("data")
    train = data.get("train") if isinstance(data, Mapping) else None
    return train if isinstance(train, Mapping) else {}


def parts_of(record: RunRecord) -> list[str]:
    """The registered names that a run is built of: its links, then its loop and strategy."""
    model, loop = record.config.get("model"), record.config.get("loop")
    links = model.get("links") if isinstance(model, Mapping) else None
    strategy = loop.get("strategy") if isinstance(loop, Mapping) else None
    named = [part for part in (*(links or ()), loop, strategy) if isinstance(part, Mapping)]
    return [name for part in named if (name := str(part.get("type", "")))]


def shots_of_record(record: RunRecord) -> int | None:
    """Labelled images a class of a partly labelled training split."""
    train = train_of(record)
    shots = train.get("shots")
    partly = train.get("type") == "PartlyLabelled"
    return shots if partly and isinstance(shots, int) and not isinstance(shots, bool) else None
