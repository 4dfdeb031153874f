"""Makes up records for tests; nothing here was ever measured."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from limbeck.engine.config import is_teacher
from limbeck.engine.record import FailureRecord, RunRecord, config_hash, record_id, write_record
from limbeck.engine.variant import Variant
from limbeck.engine.weights import sha256_json

ARCHIVE = Path(__file__).parent / "data" / "records_v1"
STRENGTH = {"teacher": 98.0, "plain": 95.0, "kd": 96.0, "dkd": 96.4, "dist": 95.1, "fitnet": 94.2}


def fabricate(method: str = "plain", seed: int = 0, /, **changes: Any) -> RunRecord:
    """A valid record; keys of `changes` replace fields, with '__' for nested ones (recipe__selection='last').

    `model` is the 'model' part of its config, see `linked`; by default there is none.
    """
    built = changes.pop("model", None)
    place = dict(benchmark="toy", pair="big-small", task="image-classification") | {
        k: changes.pop(k) for k in ("benchmark", "pair", "task") if k in changes
    }
    benchmark, pair = str(place["benchmark"]), str(place["pair"])
    teacher = is_teacher(method)
    alone = teacher or method.lower() == "plain"
    config = dict(fixture=True, method=method, seed=seed, **place)
    rng = np.random.default_rng(int(sha256_json(config)[:8], 16))
    config |= {} if built is None else {"model": built}
    top1 = STRENGTH.get(method.lower(), 95.5) + rng.normal(0, 0.25)
    model = dict(name="BigNet", parameters=1_200_000, flops=90_000_000)
    small = dict(name="SmallNet", parameters=78_000, flops=12_400_000)
    values: dict[str, Any] = dict(
        **place,
        method=method,
        seed=seed,
        data=dict(
            name="made-up", content_hash="d" * 64, split="test", train_samples=800, val_samples=200, test_samples=500
        ),
        teacher=None if alone else model,
        student=model if teacher else small,
        config=config,
        config_hash=config_hash(config),
        metrics=dict(top1=top1, nll=2.2 - top1 / 50 + rng.normal(0, 0.005), ece=0.02 + abs(rng.normal(0, 0.002))),
        val_metrics=dict(top1=top1 - 0.5),
        recipe=dict(
            batch_size=64,
            learning_rate_first=0.05,
            learning_rate_max=0.05,
            learning_rate_last=0.0,
            epochs=20,
            steps=260,
            optimizer="SGD",
            selection="last",
        ),
        cost=dict(
            train_seconds=(40.0 if teacher else 6.0) + rng.uniform(0, 1),
            samples_seen=16_000,
            teacher_forwards=0 if alone else 800,
            peak_memory_mb=500 + rng.uniform(0, 20),
            student_latency_ms=(3.2 if teacher else 0.9) + rng.uniform(0, 0.1),
        ),
        environment=dict(
            device="cpu",
            cpu="made-up CPU",
            threads=1,
            platform="fixture",
            python="3.11",
            torch="2.x",
            limbeck="0.0-fixture",
        ),
        student_sha256=sha256_json([benchmark, pair, method, seed, "weights"]),
        initial_hash=sha256_json([benchmark, pair, teacher, seed, "initial"]),
        teacher_record=None if alone else record_id(benchmark, pair, "teacher", 0),
        plain_record=None if alone else record_id(benchmark, pair, "plain", seed),
        finished="2025-01-01T00:00:00+00:00",
    )
    for key, value in changes.items():
        *parents, last = key.split("__")
        target = values
        for parent in parents:
            target = target[parent]
        target[last] = value
    if "config" in changes:
        values["config_hash"] = config_hash(values["config"])
    return RunRecord.model_validate(values)


def linked(
    *links: dict[str, Any], task_weight: float = 1.0, student: dict[str, Any] | None = None, **teachers: str
) -> dict[str, Any]:
    """The 'model' part of a run's config: its links, its student, and its frozen teachers' record ids by member."""
    members = {name: dict(type="frozen", model={}, weights=f"run://{identity}") for name, identity in teachers.items()}
    trained = dict(type="trained", model=student or dict(type="SmallNet"))
    return dict(members={**members, "student": trained}, links=list(links), task_weight=task_weight)


def vary(
    method: str, option: str, values: Iterable[Any], seeds: Iterable[int] = range(3), **changes: Any
) -> list[RunRecord]:
    """Variants of a method, one a value, on every seed."""
    seeds = list(seeds)
    return [fabricate(Variant(option, v).method(method), s, **changes) for v in values for s in seeds]


def suite(
    methods: Iterable[str] = ("KD", "DKD", "DIST", "FitNet"), seeds: Iterable[int] = range(5), **changes: Any
) -> list[RunRecord]:
    """A teacher with seed 0, the plain student and some methods on every seed."""
    seeds = list(seeds)
    made = [fabricate("teacher", 0, **changes)]
    return made + [fabricate(m, s, **changes) for m in ("plain", *methods) for s in seeds]


def write_all(folder: Path, records: Iterable[RunRecord]) -> Path:
    """Write records where their ids say."""
    for record in records:
        write_record(folder, record)
    return folder


def with_values(method: str, values: Iterable[float], **changes: Any) -> list[RunRecord]:
    """Records of one method whose top-1 is given, by seed from 0."""
    return [fabricate(method, s, metrics={"top1": v, "nll": 1.0}, **changes) for s, v in enumerate(values)]


def failure(method: str, seed: int) -> FailureRecord:
    """A run of the toy suite that a guard stopped."""
    return FailureRecord(
        benchmark="toy",
        pair="big-small",
        method=method,
        seed=seed,
        error="NonFiniteLoss",
        message="loss_kd is nan",
        config_hash="0" * 64,
        finished="2025-01-01T00:00:00+00:00",
    )


def damage(path: Path, change: Callable[[str], str]) -> None:
    """Rewrite a record's text, as a hand or a bad disk would."""
    path.write_text(change(path.read_text(encoding="utf-8")), encoding="utf-8")


def archive(folder: Path = ARCHIVE) -> None:
    """Write the archive of version 1 records. Never run it again once a later version exists: old records must load."""
    shutil.rmtree(folder, ignore_errors=True)
    made = suite(("KD", "DKD"), range(2), benchmark="fixture")
    old = fabricate("KD", 2, benchmark="fixture", status="superseded")
    shaky = [fabricate(m, s, benchmark="fixture") for m, s in (("plain", 2), ("FitNet", 0), ("FitNet", 1))]
    shaky[-1] = fabricate("FitNet", 1, benchmark="fixture", status="unreliable", data__split="test")
    write_all(folder, [*made, old, *shaky])
    (folder / "README.md").write_text(
        "# Test fixtures\n\nRecords of version 1 that `tests/leaderboard/fabricate.py` made up, not measured.\n"
        "They stay as they are when the schema changes: `test_store.py` checks that old records load.\n",
        encoding="utf-8",
    )


if __name__ == "__main__":
    archive()
