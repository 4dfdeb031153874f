"""Pictures of generators: of which runs, what their samplers are, their teachers, and what is measured of both."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Generic, Literal, TypeVar

from pydantic import Field

from limbeck.engine.config import PLAIN
from limbeck.engine.record import RunRecord
from limbeck.errors import ConfigError
from limbeck.leaderboard.pictures.members import Member, MembersPlan, OfMembers, identity, lowest
from limbeck.leaderboard.pictures.plans import model_of
from limbeck.leaderboard.store import FLAGGED, Group

TASKS = ("image-generation",)


class Generator(Member):
    """A run and its sampler."""

    steps: int
    guidance: float
    calls: float | None = Field(description="network calls an image, as its record says")


class Taught(Generator):
    """A student, and the record of its teacher."""

    teacher: str


Student = TypeVar("Student", bound=Taught)


class Measured(OfMembers, Generic[Student]):
    """What lies beside a picture of figures of students and their teachers as JSON."""

    data: str
    split: Literal["test"] = "test"
    content_hash: str = Field(description="of the requests")
    noise_seed: int = Field(description="of the requests")
    images: int = Field(description="requests that every figure is of: the first")
    limbeck: str = Field(description="version that measured")
    torch: str
    threads: int
    teachers: list[Generator]
    members: list[Student]

    @property
    def runs(self) -> Sequence[Member]:
        return [*self.teachers, *self.members]


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
    return deployed_of(record).get("sampler") or {}


def deployed_of(record: RunRecord) -> Mapping[str, Any]:
    """The config of the model that a run deploys."""
    model = model_of(record)
    member = (model.get("members") or {}).get(model.get("deploy")) or {}
    return member.get("model") or {}


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


def with_teachers(group: Group, keep: Callable[[RunRecord], bool]) -> list[RunRecord]:
    """Those students of all seeds that are kept, and their teachers, which come first; nothing where there is none.

    The plain student is left out, whose weights do not start with the teacher's, as are variants, flagged runs, and
    students without the record of a teacher.
    """
    students = [
        record
        for name, seeds in group.students.items()
        for record in seeds.values()
        if name != PLAIN and record.status not in FLAGGED and keep(record) and teacher_of(group, record) is not None
    ]
    teachers = {t.id: t for record in students if (t := teacher_of(group, record)) is not None}
    return [*teachers.values(), *students]


def taught_of(plan: MembersPlan) -> dict[str, str]:
    """The teacher of each planned student, by record id."""
    teachers = {one.id for one in plan.group.teachers}
    students = [record for record in plan.records if record.id not in teachers]
    return {record.id: t.id for record in students if (t := teacher_of(plan.group, record)) is not None}


def measured(plan: MembersPlan, taught: Mapping[str, str], seed: int, images: int) -> dict[str, Any]:
    """Fields of `Measured` but for those of the picture and the members.

    Args:
        taught: of `taught_of`. seed, images: of the requests.
    """
    import torch

    from limbeck import __version__

    known = {record.id: record for record in plan.records}
    first = known[next(iter(taught))]
    return dict(
        data=first.data.name,
        content_hash=first.data.content_hash,
        noise_seed=seed,
        images=images,
        limbeck=__version__,
        torch=torch.__version__,
        threads=torch.get_num_threads(),
        teachers=[Generator(**described(known[one])) for one in dict.fromkeys(taught.values())],
    )


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
