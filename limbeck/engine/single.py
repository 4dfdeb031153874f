"""One run from the command line: finds the teacher that a linked method needs."""

from __future__ import annotations

from pathlib import Path

from limbeck.engine.config import TEACHER, PairConfig, RunConfig, TrainedTeacher, expand
from limbeck.engine.record import read_record, record_path
from limbeck.engine.suite import trainer
from limbeck.errors import ConfigError


def single_run(pair: PairConfig, method: str, seed: int, out: Path, teacher: str | None = None) -> RunConfig:
    """The run config of one method; without `teacher`, that of the run below `out` with the lowest seed is taken.

    A pair whose teachers are made for every seed takes that of this run's.

    Raises: ConfigError when a teacher is needed and none is there.
    """
    run = expand(pair, method, seed, teacher_weights=teacher)
    frozen = [m for m, cfg in run.model["members"].items() if cfg["type"] == "frozen"]
    missing = [m for m in frozen if m != TEACHER or teacher is None]
    each = seed if pair.teacher_seeds == "run" else None
    # pretrained: a record is welcome only, but where every seed makes a teacher of it
    own = [m for m in missing if run.model["members"][m].get("initial_weights") and each is None]
    found = {m: _last_trained(pair, run.method, m, out, optional=m in own, seed=each) for m in missing}
    trained = {member: teacher for member, teacher in found.items() if teacher is not None}
    return expand(pair, method, seed, teacher_weights=teacher, trained=trained)


def _last_trained(
    pair: PairConfig, method: str, member: str, out: Path, *, optional: bool, seed: int | None
) -> TrainedTeacher | None:
    """The teacher below `out`: of the lowest seed, or of this one."""
    job = trainer("", pair, member, 0)
    name = f"{job.method} of {job.config}" if job.config else job.method
    name += "" if seed is None else f" --seed {seed}"
    folder = record_path(out / "records", job.id).parent
    records = sorted(
        (
            read_record(p)
            for p in folder.glob(f"seed{'*' if seed is None else seed}.json")
            if not p.name.endswith(".failed.json")
        ),
        key=lambda r: r.seed,
    )
    if not records and optional:
        return None
    if not records:
        said = f"method {method!r} needs a teacher and {folder} has none; train it first (--method {name})"
        raise ConfigError(f"{said} or pass --teacher FILE" if member == TEACHER else said)
    found = records[0]
    return TrainedTeacher(f"run://{found.id}", found.student_sha256, found.val_metrics.get(pair.metric.primary))
