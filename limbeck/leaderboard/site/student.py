"""What the site's template shows of a student of the zoo: its card, the record behind it, and how to load it."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from limbeck.engine.record import RunRecord
from limbeck.leaderboard.figures import count, number
from limbeck.leaderboard.site.addresses import Addresses, task_title
from limbeck.leaderboard.site.cells import cell, column, optional
from limbeck.leaderboard.table import decimals, title

Card = Mapping[str, Any]  # of limbeck.zoo, as JSON values
INDEX_COLUMNS = [
    column("student", text=True),
    column("task", text=True),
    column("method", text=True),
    column("metric", text=True),
    column("value", first="descending"),
    column("params"),
    column("FLOPs"),
    column("latency ms", help_="median of one sample's forward, on the machine of its record"),
    column("file kB"),
    column("data", text=True),
]
# What has a place of its own on the page, or is of no use there; anything else that a card says is listed.
_TOLD = {
    "card_version", "name", "task", "benchmark", "benchmark_version", "pair", "method", "seed", "model", "teacher",
    "dataset", "classes", "palette", "metrics", "primary_metric", "record", "parameters", "flops", "file",
    "file_bytes", "sha256", "licence", "intended_use", "limits", "preprocessing", "voxels", "sampler",
    "latency_ms", "latency_device", "latency_threads",
}  # fmt: skip
_INPUTS = ("preprocessing", "voxels", "sampler")


def index_row(card: Card, record: RunRecord, addresses: Addresses) -> list[dict[str, Any]]:
    """The student's line in the list of all."""
    metric, value, latency = card["primary_metric"], card["metrics"][card["primary_metric"]], _latency(record)
    return [
        cell(card["name"], link=addresses.student(record.id)),
        cell(task_title(card["task"])),
        cell(card["method"], link=addresses.method(card["method"])),
        cell(title(metric)),
        cell(number(value, decimals([value])), value),
        cell(count(card["parameters"]), card["parameters"]),
        optional(card.get("flops"), count(card.get("flops"))),
        optional(latency, number(latency, 2)),
        cell(number(card["file_bytes"] / 1e3, 0), card["file_bytes"]),
        cell(card["dataset"]["name"]),
    ]


def student_view(
    card: Card, record: RunRecord, addresses: Addresses, pictures: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """Everything that the template shows of one student.

    Args:
        pictures: of its pair, with `label` and the view of `picture_view`.
    """
    return dict(
        name=card["name"],
        task=task_title(card["task"]),
        task_link=addresses.task(card["task"]),
        benchmark=card["benchmark"],
        benchmark_link=addresses.benchmark(record.benchmark),
        method=card["method"],
        method_link=addresses.method(card["method"]),
        record=record.id,
        record_link=addresses.record(record.id),
        intended_use=card["intended_use"],
        limits=card["limits"],
        python=_python(card),
        shell=_shell(card),
        metrics=[
            (title(name), number(value, decimals([value])), name == card["primary_metric"])
            for name, value in card["metrics"].items()
        ],
        facts=_facts(card, record),
        inputs=[(name, _pairs(card[name])) for name in _INPUTS if isinstance(card.get(name), Mapping)],
        classes=card["classes"],
        colours=[f"#{r:02x}{g:02x}{b:02x}" for r, g, b in card.get("palette") or []],
        pictures=pictures,
    )


def _python(card: Card) -> str:
    name = card["name"]
    made = f'import limbeck\n\nstudent = limbeck.load_student("{name}")  # a torch module in eval mode\n'
    if card.get("sampler"):
        return made + "student.generate([0, 1, 2], seed=0).images  # of these classes, in [−1, 1]"
    source = "000008.bin" if card.get("voxels") else "image.jpg"
    return made + f'limbeck.Predictor("{name}")(["{source}"])[0]'


def _shell(card: Card) -> str:
    name = shlex.quote(card["name"])
    source = "" if card.get("sampler") else " 000008.bin" if card.get("voxels") else " image.jpg"
    return f"limbeck zoo info {name}\nlimbeck zoo predict {name}{source}"


def _facts(card: Card, record: RunRecord) -> list[tuple[str, str]]:
    """Sizes, latency, data, terms, and whatever else a card says."""
    environment, latency = record.environment, _latency(record)
    where = f"{environment.machine}, {environment.threads} thread{'s' if environment.threads != 1 else ''}"
    dataset = card["dataset"]
    facts = [
        ("parameters", f"{card['parameters']:,}"),
        ("FLOPs", count(card.get("flops"))),
        ("latency", "not measured" if latency is None else f"{number(latency, 2)} ms a sample, on {where}"),
        ("file", f"{card['file']}, {card['file_bytes'] / 1e3:,.0f} kB"),
        ("sha256", card["sha256"]),
        ("teacher", card.get("teacher") or "none"),
        ("pair", f"{card['benchmark']}/{card['pair']}, version {card['benchmark_version']}, seed {card['seed']}"),
        ("licence", card["licence"]),
        ("data", f"{dataset['name']}: {dataset['source']}"),
        ("the data's licence", dataset["licence"]),
    ]
    more = {k: v for k, v in card.items() if k not in _TOLD and v not in (None, "", [], {})}
    return facts + [(key.replace("_", " "), _said(value)) for key, value in more.items()]


def _latency(record: RunRecord) -> float | None:
    return record.cost.student_latency_ms


def _pairs(values: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [(key.replace("_", " "), _said(value)) for key, value in values.items() if value not in (None, "")]


def _said(value: Any) -> str:
    if isinstance(value, Mapping):
        return "; ".join(f"{k}: {_said(v)}" for k, v in value.items())
    return ", ".join(map(_said, value)) if isinstance(value, list | tuple) else str(value)
