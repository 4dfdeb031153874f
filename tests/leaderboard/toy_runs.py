"""A suite of toys, trained in this process: records, weights and the config that they are from."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from limbeck.engine.record import RunRecord
from limbeck.engine.run import RunOptions, execute
from limbeck.engine.suite import plan, resolve
from tests.engine.toys import toy_suite


def run_toys(folder: Path, **changes: Any) -> SimpleNamespace:
    """`records` and `runs`, folders; `config` and `suite`, files; `made`, the records by id."""
    suite = toy_suite(folder, **changes)
    options = RunOptions(out=folder / "runs", records=folder / "records", threads=1, latency_ms=1.0)
    made: dict[str, RunRecord] = {}
    for job in plan(suite):
        record = execute(resolve(job, folder / "records"), options)
        assert record is not None
        made[record.id] = record
    place = dict(records=folder / "records", runs=folder / "runs", config=folder / "toy.py")
    return SimpleNamespace(**place, suite=folder / "toys.toml", made=made)


def edit(path: Path, **fields: Any) -> None:
    """Rewrite fields of a record by hand, '__' for nested ones."""
    raw = json.loads(path.read_text(encoding="utf-8"))
    for key, value in fields.items():
        *parents, last = key.split("__")
        target = raw
        for parent in parents:
            target = target[parent]
        target[last] = value
    path.write_text(json.dumps(raw), encoding="utf-8")
