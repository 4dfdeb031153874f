"""Pictures of generators: of which runs, what their samplers are, and their teachers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import Field

from limbeck.engine.record import RunRecord
from limbeck.errors import ConfigError
from limbeck.leaderboard.pictures.members import Member, identity, lowest
from limbeck.leaderboard.store import Group

TASKS = ("image-generation",)


class Generator(Member):
    """A run and its sampler."""

    steps: int
    guidance: float
    calls: float | None = Field(description="network calls an image, as its record says")


def described(record: RunRecord) -> dict[str, Any]:
    """Fields of `Generator`."""
    sampler = sampler_of(record)
    return identity(record) | dict(
        steps=steps_of(record),
        guidance=float(sampler.get("guidance", 1.0)),
        calls=record.metrics.get("calls"),
    )


def sampler_of(record: RunRecord) -> Mapping[str, Any]:
    """The sampler in the config of what a run deploys; what it leaves out is `Sampler`'s default."""
    model = record.config.get("model") or {}
    member = (model.get("members") or {}).get(model.get("deploy")) or {}
    return (member.get("model") or {}).get("sampler") or {}


def steps_of(record: RunRecord) -> int:
    """Of its sampler."""
    return int(sampler_of(record).get("steps", 50))


def teacher_of(group: Group, record: RunRecord) -> RunRecord | None:
    """The record of a run's teacher: the one that it names, else the one that the gap closed is measured by."""
    known = {one.id: one for one in group.teachers}
    named = known.get(record.teacher_record or "")
    if named is not None or group.reference is None:
        return named
    seeds = group.references[group.reference]
    return seeds[min(seeds)]


def shown(group: Group) -> list[RunRecord]:
    """The teacher, where there is a record, and the run of the lowest seed of each method, the plain student's first.

    Variants are left out.

    Raises: ConfigError where there is no student.
    """
    students = lowest(group)
    if not students:
        raise ConfigError(f"{group.name}: no record of a student; run the pair first")
    teacher = teacher_of(group, students[-1])
    return students if teacher is None else [teacher, *students]


def cost_text(one: Generator) -> str:
    """'4 steps, 4 network calls'."""
    steps = f"{one.steps} step{'s' if one.steps != 1 else ''}"
    if one.calls is None:
        return steps
    return f"{steps}, {one.calls:g} network call{'s' if one.calls != 1 else ''}"
