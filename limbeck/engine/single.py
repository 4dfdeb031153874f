"""One run from the command line: finds the teacher that a linked method needs."""

from __future__ import annotations

from pathlib import Path

from limbeck.engine.config import TEACHER, PairConfig, RunConfig, expand
from limbeck.engine.record import read_record, record_id, record_path
from limbeck.errors import ConfigError


def single_run(pair: PairConfig, method: str, seed: int, out: Path, teacher: str | None = None) -> RunConfig:
    """The run config of one method; without `teacher`, that of the run below `out` with the lowest seed is taken.

    Raises: ConfigError when a teacher is needed and none is there.
    """
    run = expand(pair, method, seed, teacher_weights=teacher)
    members = run.model["members"]
    if "teacher" not in members or teacher is not None:
        return run
    folder = record_path(out / "records", record_id(pair.benchmark, pair.pair, TEACHER, 0)).parent
    records = sorted(
        (read_record(p) for p in folder.glob("seed*.json") if not p.name.endswith(".failed.json")), key=lambda r: r.seed
    )
    if not records:
        raise ConfigError(
            f"method {run.method!r} needs a teacher and {folder} has none; "
            "train it first (--method teacher) or pass --teacher FILE"
        )
    found = records[0]
    return expand(
        pair,
        method,
        seed,
        teacher_weights=f"run://{found.id}",
        teacher_sha256=found.student_sha256,
        teacher_metric=found.val_metrics.get(pair.metric.primary),
    )
