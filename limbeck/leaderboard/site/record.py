"""What the site's template shows of a record: figures, cost, environment, config, and how to run it again."""

from __future__ import annotations

import json
import marshal
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from limbeck.engine.record import RunRecord
from limbeck.leaderboard.checks import teacher_ids
from limbeck.leaderboard.figures import BLANK, count, number
from limbeck.leaderboard.site.addresses import Addresses, task_title
from limbeck.leaderboard.site.commands import Run, commands_of
from limbeck.leaderboard.site.history import history_view
from limbeck.leaderboard.table import decimals, title


def record_view(record: RunRecord, known: Mapping[str, Run], addresses: Addresses) -> dict[str, Any]:
    """Everything that the template shows of one record.

    Args:
        known: runs of the site by record id; one that is not among them has no page to link to.
    """
    return dict(
        id=record.id,
        method=record.method,
        method_link=addresses.method(record.method),
        seed=record.seed,
        name=f"{record.benchmark}/{record.pair}",
        version=record.benchmark_version,
        task=task_title(record.task),
        task_link=addresses.task(record.task),
        benchmark_link=addresses.benchmark(record.benchmark),
        status=record.status,
        assumption=record.assumption,
        json=f"{record.id.rpartition('/')[2]}.json",
        student=addresses.student(record.id),
        links=_links(record, known, addresses),
        metrics=_metrics(record),
        classes=[
            (title(name), [(key, f"{value:.4g}") for key, value in values.items()])
            for name, values in record.per_class.items()
        ],
        training=history_view(record),
        sections=_sections(record),
        commands=commands_of(_run(record), known),
        config=config_text(record.config),
    )


def _run(record: RunRecord) -> Run:
    return Run(record.benchmark, record.pair, record.method, record.seed, tuple(teacher_ids(record)))


def config_text(config: Mapping[str, Any]) -> str:
    """A config as indented JSON; of what it has in common with the configs of many other runs the text is kept."""
    # marshal tells 1 from 1.0 and True, as an equal value would not, and is several times as fast as JSON
    parts = (
        f"{_laid_out(marshal.dumps(key, 2))}: {_laid_out(marshal.dumps(value, 2))}" for key, value in config.items()
    )
    return "{\n " + ",\n ".join(parts) + "\n}" if config else "{}"


@lru_cache(maxsize=4096)
def _laid_out(part: bytes) -> str:
    text = json.dumps(marshal.loads(part), indent=1, ensure_ascii=False)
    return text.replace("\n", "\n ")  # line breaks of the layout: those in texts are escaped


def _links(record: RunRecord, known: Mapping[str, Run], addresses: Addresses) -> list[tuple[str, str, str]]:
    """Teachers and the plain student with this seed: what, id, address."""
    found = [("teacher", identity) for identity in dict.fromkeys(teacher_ids(record))]
    if record.plain_record:
        found.append(("plain student", record.plain_record))
    return [(what, one, addresses.record(one) if one in known else "") for what, one in found]


def _metrics(record: RunRecord) -> list[tuple[str, str, str]]:
    """Name, on the test split, on the validation split."""
    rows = []
    for name in dict.fromkeys((*record.metrics, *record.val_metrics)):
        values = record.metrics.get(name), record.val_metrics.get(name)
        places = decimals(v for v in values if v is not None)
        rows.append((title(name), *(number(v, places) for v in values)))
    return rows


def _sections(record: RunRecord) -> list[tuple[str, list[tuple[str, str]]]]:
    """Headings, and under each what the record says."""
    data, cost, recipe = record.data, record.cost, record.recipe
    latency = cost.student_latency_ms
    models = [("teacher", record.teacher), ("student", record.student)]
    return [
        (
            "Networks",
            [
                (what, f"{m.name}, {m.parameters:,} parameters, {count(m.flops)} FLOPs")
                for what, m in models
                if m is not None
            ],
        ),
        (
            "Data",
            [
                ("name", data.name),
                ("samples", f"{data.train_samples:,} train, {data.val_samples:,} val, {data.test_samples:,} test"),
                (f"{data.split} hash", data.content_hash),
                ("train hash", data.train_hash or BLANK),
                ("val hash", data.val_hash or BLANK),
                *((f"{name} hash", more.content_hash) for name, more in data.also.items()),
            ],
        ),
        (
            "Recipe",
            [(key.replace("_", " "), _said(value)) for key, value in recipe.__dict__.items()],
        ),
        (
            "Cost",
            [
                ("training", f"{number(cost.train_seconds, 1)} s"),
                ("samples seen", f"{cost.samples_seen:,}"),
                ("teacher forwards", f"{cost.teacher_forwards:,}"),
                ("peak memory", f"{number(cost.peak_memory_mb, 0)} MB"),
                ("latency", BLANK if latency is None else f"{number(latency, 3)} ms a sample"),
            ],
        ),
        (
            "Environment",
            [(key.replace("_", " "), _said(value)) for key, value in record.environment.__dict__.items()],
        ),
        (
            "Hashes",
            [
                ("config", record.config_hash),
                ("student's weights", record.student_sha256),
                ("weights before the first step", record.initial_hash),
                *([("predictions on test", record.predictions_sha256)] if record.predictions_sha256 else []),
            ],
        ),
    ]


def _said(value: Any) -> str:
    return BLANK if value is None else f"{value:g}" if isinstance(value, float) else str(value)
