"""Pictures of several runs of a pair: which ones, the files of their weights, and whether the picture still holds."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from limbeck.engine.record import RunRecord, Sha256
from limbeck.errors import ConfigError
from limbeck.leaderboard.pictures.plans import (
    Description,
    StalePicture,
    Strict,
    find_weights,
    groups_of,
    groups_with,
    picture_files,
    read_description,
)
from limbeck.leaderboard.store import Group, Results

TASKS = ("vlm-classification",)
Choose = Callable[[Group], list[RunRecord]]


class Member(Strict):
    """One run of the picture."""

    method: str
    record: str
    seed: int
    config_hash: Sha256
    student_sha256: Sha256


class OfMembers(Description):
    """What lies beside a picture of several runs: subclasses have `members` of a `Member`."""

    @property
    def runs(self) -> Sequence[Member]:
        """Its members."""
        raise NotImplementedError


Described = TypeVar("Described", bound=OfMembers)


@dataclass(frozen=True)
class MembersPlan:
    """A picture to draw: its records, and the files of their weights by record id."""

    group: Group
    records: Sequence[RunRecord]
    weights: Mapping[str, Path]

    def described(self) -> dict[str, Any]:
        """Fields of `Description` but for those of the picture."""
        return dict(benchmark=self.group.benchmark, benchmark_version=self.group.version, pair=self.group.pair)


def identity(record: RunRecord) -> dict[str, Any]:
    """Fields of `Member`."""
    return dict(
        method=record.method,
        record=record.id,
        seed=record.seed,
        config_hash=record.config_hash,
        student_sha256=record.student_sha256,
    )


def lowest(group: Group) -> list[RunRecord]:
    """The run of the lowest seed of each method, the plain student's first; no variants."""
    return [seeds[min(seeds)] for seeds in group.students.values()]


def plan_members(
    results: Results,
    benchmarks: Sequence[str],
    choose: Choose,
    *,
    weights: Mapping[str, Path],
    runs: str | Path | None,
    pair: str | None,
    tasks: Sequence[str] = TASKS,
) -> list[MembersPlan]:
    """What is to be drawn for the pairs of some benchmarks that have such runs; nothing, unless it can be for all.

    Args:
        choose: gives a group's runs, or raises ConfigError where it has none.
        weights, runs: see `find_weights`.
        pair: this one alone.
        tasks: those that are drawn.
    Raises: UnknownName for the pair; ConfigError for a task that is not drawn, where no pair has such a run, and where
        weights are missing.
    """
    found = groups_with(groups_of(results, benchmarks, pair, tasks), choose)
    return [
        MembersPlan(group, records, {r.id: find_weights(r.id, r.student_sha256, weights, runs) for r in records})
        for group, records in found
    ]


def find_members(
    kind: type[Described], folder: str, group: Group, site: str | Path, choose: Choose
) -> Described | None:
    """What a site's folder has of a group's runs; None where nothing was drawn.

    Args:
        folder: of the site, and the command that draws into it.
        choose: gives the runs that would be drawn today, or raises ConfigError where there are none.
    Raises: StalePicture when a file is not whole, or other records or weights would be drawn today.
    """
    picture, beside = picture_files(site, folder, group)
    again = f"draw it again with: limbeck leaderboard {folder} {group.benchmark} --pair {group.pair}"
    found = read_description(kind, picture, beside, again)
    if found is None:
        return None
    try:
        current = {r.id: (r.config_hash, r.student_sha256) for r in choose(group)}
    except ConfigError:  # the runs have left the records
        current = {}
    drawn = {m.record: (m.config_hash, m.student_sha256) for m in found.runs}
    for record in {**drawn, **current}:
        if drawn.get(record) != current.get(record):
            raise StalePicture(f"{picture}: drawn without {record} as it is in the records now, and not shown; {again}")
    return found
