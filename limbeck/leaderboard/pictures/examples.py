"""Examples: which records a picture of test images compares, its files beside the page, and whether they still hold."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from limbeck.engine.config import PLAIN, TEACHER
from limbeck.engine.record import Finite, RunRecord, Sha256
from limbeck.errors import ConfigError
from limbeck.leaderboard.checks import check_apart
from limbeck.leaderboard.pictures.plans import (
    Description,
    StalePicture,
    Strict,
    find_weights,
    groups_of,
    picture_files,
    read_description,
    save_description,
    save_picture,
)
from limbeck.leaderboard.places import Places
from limbeck.leaderboard.store import FLAGGED, Group, Results

if TYPE_CHECKING:
    from limbeck.leaderboard.pictures.panel_layout import Legend

FOLDER = "examples"  # of a site
BEST = "best"
DRAW_SEED = 0  # of the random draw of images
Chosen = Literal["random", "difference"]
WHY: Mapping[Chosen, str] = {"random": "drawn at random", "difference": "among the largest differences"}
LIDAR_IOU = (0.25, 0.25, 0.5)  # in 3D detection, of pedestrians, cyclists and cars, seen from above
SCORE, IOU = (
    0.3,
    0.5,
)  # in detection: boxes of lower scores are not drawn; an object is found with at least that overlap
Report = Callable[[int, int], None]


class Member(Strict):
    """One column of predictions: whose weights made it."""

    record: str
    method: str
    seed: int
    student_sha256: Sha256


class Sample(Strict):
    """One row: a sample of the test split, why it is there, and each member's figures on this sample alone."""

    sample: int
    chosen: Chosen
    metrics: dict[str, dict[str, Finite]]


class Examples(Description):
    """What lies beside a picture of examples as JSON."""

    examples_version: Literal[1] = 1
    task: str
    data: str
    content_hash: str = Field(description="of the test split")
    primary_metric: str
    members: dict[str, Member] = Field(description="'teacher' where the pair has one, 'plain', 'best'")
    candidates: int = Field(description="samples of the test split that could be chosen: those that have a figure")
    draw_seed: int = Field(description="of the samples chosen at random, drawn before any prediction is looked at")
    samples: list[Sample]


@dataclass(frozen=True)
class Plan:
    """A picture to draw: the records by member, and the files of their weights."""

    group: Group
    records: Mapping[str, RunRecord]
    weights: Mapping[str, Path]


def compared(group: Group) -> dict[str, RunRecord]:
    """The records that a group's picture compares: 'teacher' where there is one, 'plain' and 'best'.

    The best student is of the method with the best mean of the primary metric on validation over its seeds; methods
    with unreliable or partial runs are left out. Both students are of the lowest seed that both have. The teacher is
    the one that the best student's record names, else the one that the gap closed is measured by.

    Raises: ConfigError where no method has figures on validation.
    """
    means = {name: mean for name in group.students if name != PLAIN and (mean := _validated(group, name)) is not None}
    if not means:
        raise ConfigError(
            f"{group.name}: no ranked method has a {group.sample.primary_metric} on validation, so there is no best "
            "student to draw; run a method of the pair first"
        )
    sign = 1.0 if group.sample.higher_is_better else -1.0
    best, plain = group.students[max(means, key=lambda name: sign * means[name])], group.students[PLAIN]
    shared = sorted(plain.keys() & best.keys())
    if not shared:
        raise ConfigError(
            f"{group.name}: {_method(best)} has no seed that the plain student has; run plain on its seeds"
        )
    seed = shared[0]
    known = {record.id: record for record in group.teachers}
    teacher = known.get(best[seed].teacher_record or "")
    if teacher is None and group.reference is not None:
        rows = group.references[group.reference]
        teacher = rows[min(rows)]
    found = {PLAIN: plain[seed], BEST: best[seed]}
    return found if teacher is None else {TEACHER: teacher, **found}


def _validated(group: Group, name: str) -> float | None:
    """A method's mean of the primary metric on validation; None where a run is flagged or lacks it."""
    runs, metric = group.students[name].values(), group.sample.primary_metric
    if any(r.status in FLAGGED or metric not in r.val_metrics for r in runs):
        return None
    return fmean(r.val_metrics[metric] for r in runs)


def _method(seeds: Mapping[int, RunRecord]) -> str:
    return next(iter(seeds.values())).method


def plan_examples(
    results: Results,
    benchmarks: Sequence[str],
    *,
    weights: Mapping[str, Path],
    runs: str | Path | None = None,
    pair: str | None = None,
) -> list[Plan]:
    """What is to be drawn for the pairs of some benchmarks; nothing is, unless it can be for all.

    Args:
        weights: files by sha256, such as the zoo's.
        runs: folder of a suite's runs, '<record id>/student.safetensors' below it, for weights that are not there.
        pair: this one alone.
    Raises: UnknownName for the pair; ConfigError for a task that is not drawn, and where records or weights are
        missing.
    """
    from limbeck.leaderboard.pictures.panels import PANELS

    groups = groups_of(results, benchmarks, pair, list(PANELS))
    plans = []
    for group in groups:
        records = compared(group)
        files = {m: find_weights(r.id, r.student_sha256, weights, runs) for m, r in records.items()}
        plans.append(Plan(group, records, files))
    return plans


def draw_examples(
    plan: Plan, site: str | Path, *, results: Places, legend: Legend, count: int = 4, report: Report | None = None
) -> Path:
    """Draw a planned picture into a site's folder, each of its two files whole or not at all; returns its path.

    Args:
        results: the folder of records, which `site` may not lie in.
        legend: draws named colours, see `limbeck.leaderboard.pictures.panel_layout`.
        count: images shown; half of them, rounded up, are drawn at random.
        report: gets how many images are done, and of how many.
    Raises: DataMissing, CorruptFile where data or weights are not those of the records; ConfigError for a count that
        the split does not have; OutputError.
    """
    from limbeck.leaderboard.pictures.example_images import Comparison
    from limbeck.leaderboard.pictures.panels import PANELS

    check_apart(site, results)
    seen = Comparison(plan.records, plan.weights)
    shown = seen.chosen(count, report or (lambda done, total: None))
    titles = {member: _title(member, record) for member, record in plan.records.items()}
    sample = plan.records[PLAIN]
    heading = f"{plan.group.name}: test split of {sample.data.name}, students of seed {sample.seed}"
    picture = PANELS[sample.task](shown, heading, titles, seen.dataset, legend)
    path, beside = picture_files(site, FOLDER, plan.group)
    digest = save_picture(picture, path)
    save_description(_described(plan, shown, seen.candidates, digest, picture.size), beside)
    return path


def _title(member: str, record: RunRecord) -> str:
    return {TEACHER: "teacher", PLAIN: "plain student"}.get(member, f"best student: {record.method}")


def _described(plan: Plan, shown: Sequence[Any], candidates: int, digest: str, size: tuple[int, int]) -> Examples:
    sample = plan.records[PLAIN]
    return Examples(
        benchmark=sample.benchmark,
        benchmark_version=sample.benchmark_version,
        pair=sample.pair,
        task=sample.task,
        data=sample.data.name,
        content_hash=sample.data.content_hash,
        primary_metric=sample.primary_metric,
        members=_members(plan.records),
        candidates=candidates,
        draw_seed=DRAW_SEED,
        samples=[Sample(sample=s.sample, chosen=s.chosen, metrics=s.metrics) for s in shown],
        picture_sha256=digest,
        size=size,
    )


def _members(records: Mapping[str, RunRecord]) -> dict[str, Member]:
    return {
        member: Member(record=r.id, method=r.method, seed=r.seed, student_sha256=r.student_sha256)
        for member, r in records.items()
    }


def find_examples(group: Group, site: str | Path) -> Examples | None:
    """What a site's folder has for a group; None where nothing was drawn.

    Raises: StalePicture when a file is not whole, or another record or other weights would be drawn today.
    """
    picture, beside = picture_files(site, FOLDER, group)
    again = f"draw them again with: limbeck leaderboard examples {group.benchmark} --pair {group.pair}"
    found = read_description(Examples, picture, beside, again)
    if found is None:
        return None
    try:
        current = _members(compared(group))
    except ConfigError:  # what was best has left the records
        current = {}
    for member in {**found.members, **current}:
        if found.members.get(member) != current.get(member):
            raise StalePicture(
                f"{picture}: drawn for another record or other weights of its {member} member, and not shown; {again}"
            )
    return found
