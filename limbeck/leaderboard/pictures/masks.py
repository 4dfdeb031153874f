"""Masks of ACAM-KD over training: which run is trained again, its files, and whether they still hold."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal

from pydantic import Field

from limbeck.engine.record import Finite, RunRecord, Sha256
from limbeck.errors import ConfigError
from limbeck.leaderboard.checks import check_apart
from limbeck.leaderboard.pictures.plans import (
    DRAW_SEED,
    RunDescription,
    RunPlan,
    Strict,
    find_run,
    linked_runs,
    plan_runs,
    save_drawn,
)
from limbeck.leaderboard.places import Places
from limbeck.leaderboard.store import Group, Results

FOLDER = "masks"  # of a site; also the command that draws
LINK = "ACAMKD"  # the registered method whose masks are drawn
TASKS = ("semantic-segmentation", "object-detection")
SHOWN = (0, 1, 2, 5)  # epochs that are drawn, and the last
Report = Callable[[int, int], None]


class Curves(Strict):
    """How masks of one kind went, by level, then after every epoch from 0: means over images, masks and positions."""

    change: list[list[Finite]] = Field(description="absolute difference from the masks before the first step")
    mean: list[list[Finite]]


class Masks(RunDescription):
    """What lies beside a picture of masks as JSON."""

    masks_version: Literal[1] = 1
    rerun_sha256: Sha256 = Field(description="of the student that was trained again; the same if it is that very run")
    data: str
    split: Literal["val"] = "val"
    content_hash: str = Field(description="of the split")
    draw_seed: int = Field(description="of the samples, drawn at random")
    samples: list[int]
    epochs: list[int] = Field(description="those drawn; 0 is before the first step")
    levels: list[str] = Field(description="taps of the student, one a level")
    finest: int = Field(description="the level that is drawn")
    map_size: tuple[int, int] = Field(description="height and width of its spatial masks for the first sample")
    ranges: list[tuple[Finite, Finite]] = Field(
        description="smallest and largest value of each of its spatial masks over all samples and epochs"
    )
    changes: list[Finite] = Field(description="of each of its spatial masks from the start to the end, mean absolute")
    moved_most: list[int] = Field(description="the spatial masks that are drawn beside the mean of all")
    curves: dict[str, Curves] = Field(description="by kind: 'spatial' and, where there are such masks, 'channel'")

    @property
    def same_run(self) -> bool:
        """Whether the run that the masks are of ended with the record's weights."""
        return self.rerun_sha256 == self.student_sha256


def masked(group: Group) -> RunRecord:
    """The run whose masks are drawn: the method with an ACAM-KD link, of the lowest seed; variants are left out.

    Raises: ConfigError where there is none, or it has no spatial masks.
    """
    for record, link in linked_runs(group, LINK):
        if link.get("masks", "both") not in ("both", "spatial"):
            raise ConfigError(f"{record.id} has no spatial masks to draw; run {record.method} with masks='both'")
        return record
    raise ConfigError(f"{group.name}: no record of a method with {LINK} masks; run ACAM-KD of the pair first")


def plan_masks(
    results: Results,
    benchmarks: Sequence[str],
    *,
    weights: Mapping[str, Path],
    runs: str | Path | None = None,
    pair: str | None = None,
) -> list[RunPlan]:
    """What is to be drawn for the pairs of some benchmarks that have ACAM-KD; see `plan_runs`."""
    return plan_runs(results, benchmarks, masked, tasks=TASKS, weights=weights, runs=runs, pair=pair)


def draw_masks(
    plan: RunPlan, site: str | Path, *, results: Places, count: int = 3, report: Report | None = None
) -> tuple[Path, Masks]:
    """Train a planned run again and draw its masks into a site's folder; returns the picture's path and what it says.

    Args:
        results: the folder of records, which `site` may not lie in.
        count: images of the validation split.
        report: gets how many steps of training are done, and of how many.
    Raises: DataMissing, CorruptFile where data or weights are not those of the record; ConfigError for a count that
        the split does not have; OutputError.
    """
    from limbeck.leaderboard.pictures.mask_run import moved_most, movement, train_again
    from limbeck.leaderboard.pictures.panels_masks import draw_masks as draw

    check_apart(site, results)
    record = plan.record
    seen = train_again(record, plan.teachers, count, report or (lambda done, total: None))
    last = len(seen.masks) - 1
    finest = seen.spatial()
    chosen = moved_most(finest)
    epochs = sorted({epoch for epoch in SHOWN if epoch < last} | {last})
    curves = {kind: Curves(change=change, mean=mean) for kind, (change, mean) in movement(seen.masks).items()}
    picture = draw(
        seen, epochs, chosen, curves, f"{plan.group.name}: spatial masks of {record.method}, seed {record.seed}"
    )
    return save_drawn(
        Masks,
        plan,
        FOLDER,
        site,
        picture,
        rerun_sha256=seen.student_sha256,
        data=record.data.name,
        content_hash=seen.content_hash,
        draw_seed=DRAW_SEED,
        samples=seen.samples,
        epochs=epochs,
        levels=seen.levels,
        finest=seen.finest,
        map_size=(finest[0][0].shape[1], finest[0][0].shape[2]),
        ranges=seen.ranges(),
        changes=seen.changes(),
        moved_most=chosen,
        curves=curves,
    )


def find_masks(group: Group, site: str | Path) -> Masks | None:
    """What a site's folder has for a group; None where nothing was drawn.

    Raises: StalePicture when a file is not whole, or another record or other weights would be drawn today.
    """
    return find_run(Masks, FOLDER, group, site, masked)
