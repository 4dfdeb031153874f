"""Diversity distillation, measured: the teacher makes the first steps, a student the rest (arXiv 2503.10637).

Nothing is trained, so there is no record of it: the figures lie beside the picture as JSON, with the records, weights,
requests and seeds that they are of, and picture and table are made of that file alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from limbeck.engine.record import Finite, RunRecord
from limbeck.errors import ConfigError
from limbeck.leaderboard.checks import check_apart
from limbeck.leaderboard.pictures.generators import (
    TASKS,
    Measured,
    Taught,
    described,
    measured,
    sampler_of,
    steps_of,
    taught_of,
    with_teachers,
)
from limbeck.leaderboard.pictures.members import MembersPlan, find_members, plan_members
from limbeck.leaderboard.pictures.plans import Strict, save_drawn
from limbeck.leaderboard.places import Places
from limbeck.leaderboard.store import Group, Results

FOLDER = "hand-over"  # of a site; also the command that draws


class Point(Strict):
    """One hand-over step: what it costs and how good the images are."""

    at: int = Field(description="steps of the student that the teacher makes instead; 0 is the student alone")
    base_steps: int = Field(description="of the teacher from noise to image; where it is the student's, same times")
    calls: int = Field(description="network calls an image, of both")
    metrics: dict[str, Finite]


class HandedOver(Taught):
    """A student and its figures at every hand-over step."""

    sampler: str = Field(description="of the student's steps")
    recorded: dict[str, Finite] = Field(description="the student's figures as its record says; those at 0 are the same")
    points: list[Point]


class HandOver(Measured[HandedOver]):
    """What lies beside a picture of hand-overs as JSON."""

    hand_over_version: Literal[1] = 1
    metric_id: str = Field(description="feature nets, real split and number of images: figures of one id compare")
    primary_metric: str
    higher_is_better: bool


def handed(group: Group) -> list[RunRecord]:
    """The runs that are measured: students of several steps, of all seeds, and their teachers, which come first.

    Students of their own noise on the way (eta) are left out, and others as `with_teachers` says.

    Raises: ConfigError where there is none.
    """
    found = with_teachers(group, _goes_on)
    if not found:
        raise ConfigError(
            f"{group.name}: no student of several steps with a teacher's record, so there is nothing to hand over to; "
            "name a pair of 2 steps or more"
        )
    return found


def _goes_on(record: RunRecord) -> bool:
    """Whether a student can go on from the middle of the course."""
    sampler = sampler_of(record)
    return steps_of(record) > 1 and sampler.get("kind", "ddim") in ("ddim", "consistency") and not sampler.get("eta")


def plan_hand_over(
    results: Results,
    benchmarks: Sequence[str],
    *,
    weights: Mapping[str, Path],
    runs: str | Path | None = None,
    pair: str | None = None,
) -> list[MembersPlan]:
    """What is to be measured for the pairs of some benchmarks that have students of several steps."""
    return plan_members(results, benchmarks, handed, weights=weights, runs=runs, pair=pair, tasks=TASKS)


def draw_hand_over(
    plan: MembersPlan, site: str | Path, *, results: Places, images: int | None = None, report: Any = None
) -> tuple[Path, HandOver]:
    """Measure planned students at every hand-over step, and draw it; returns the picture's path and the figures.

    The teacher walks the student's own times, and besides its own finer ones, for the paper's "first step" is read both
    ways.

    Args:
        results: the folder of records, which `site` may not lie in.
        images: requests of the test split, the first; all where not given.
        report: gets how many batches are done, and of how many.
    Raises: DataMissing, CorruptFile where data or weights are not those of the records; ConfigError; OutputError.
    """
    from limbeck.leaderboard.pictures.hand_over_run import measure
    from limbeck.leaderboard.pictures.panels_hand_over import draw_hand_over as draw

    check_apart(site, results)
    known = {record.id: record for record in plan.records}
    taught = taught_of(plan)
    seen = measure(known, taught, plan.weights, images, report or (lambda done, total: None))
    first = known[next(iter(taught))]
    members = [
        HandedOver(
            **described(known[student]),
            teacher=teacher,
            sampler=str(sampler_of(known[student]).get("kind", "ddim")),
            recorded=known[student].metrics,
            points=[Point(**point) for point in seen.points[student]],
        )
        for student, teacher in taught.items()
    ]
    said = measured(plan, taught, seen.seed, seen.images) | dict(
        metric_id=seen.metric_id,
        primary_metric=first.primary_metric,
        higher_is_better=first.higher_is_better,
        members=members,
    )
    picture = draw(members, first.primary_metric, f"{plan.group.name}: the teacher's first steps, the student's rest")
    return save_drawn(HandOver, plan, FOLDER, site, picture, **said)


def find_hand_over(group: Group, site: str | Path) -> HandOver | None:
    """What a site's folder has for a group; None where nothing was measured.

    Raises: StalePicture when a file is not whole, or other records or weights would be measured today.
    """
    return find_members(HandOver, FOLDER, group, site, handed)
