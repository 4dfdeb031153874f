"""Voxels that PointDistiller chooses: of which run, their figures and files, and whether they still hold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

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
    model_of,
    plan_runs,
    save_drawn,
)
from limbeck.leaderboard.places import Places
from limbeck.leaderboard.store import Group, Results

if TYPE_CHECKING:
    from limbeck.leaderboard.pictures.panel_layout import Legend

FOLDER = "voxels"  # of a site; also the command that draws
LINK = "PointDistiller"  # the registered method whose choice is drawn
TASKS = ("3d-object-detection",)
BINS = 20  # of the histogram of weights


class ChosenVoxels(Strict):
    """One row: a frame, its pillars, and those that became centres."""

    sample: int
    objects: int = Field(description="ground-truth boxes")
    pillars: int = Field(description="that hold points")
    centres: int
    pillars_inside: Finite = Field(description="share of the pillars whose middle lies in a box, seen from above")
    centres_inside: Finite = Field(description="share of the centres whose middle does")
    weight_inside: Finite = Field(description="their share of the sum of weights φ")
    effective_centres: Finite = Field(description="(Σφ)² / Σφ²: as many of equal weight would count as much")
    histogram: list[int] = Field(description="of φ, from 0 to `largest_weight`")


class Voxels(RunDescription):
    """What lies beside a picture of chosen voxels as JSON."""

    voxels_version: Literal[1] = 1
    teacher_record: str | None = Field(description="None where its weights are not a run's")
    teacher_sha256: Sha256 | None
    tap: str = Field(description="the teacher's, whose rows are pillars")
    options: dict[str, Any] = Field(description="of the tap: num_voxels, kneighbours, temperature, reweight, …")
    batch_size: int = Field(description="frames that were looked at together, as in training")
    data: str
    split: Literal["val"] = "val"
    content_hash: str = Field(description="of the split")
    draw_seed: int = Field(description="of the samples, drawn at random")
    largest_weight: Finite
    frames: list[ChosenVoxels]


def chosen(group: Group) -> RunRecord:
    """The run whose voxels are drawn: the method with a PointDistiller link, of the lowest seed; no variants.

    'PointDistiller' itself comes first where several methods have such a link.

    Raises: ConfigError where there is none.
    """
    found = [record for record, _ in linked_runs(group, LINK)]
    if not found:
        raise ConfigError(f"{group.name}: no record of a method with a {LINK} link; run {LINK} of the pair first")
    return next((record for record in found if record.method == LINK), found[0])


def teacher_of(record: RunRecord) -> tuple[str | None, str | None]:
    """Record id and sha256 of the link's teacher, as the run's config has them."""
    model = model_of(record)
    link = next(one for one in model["links"] if one["type"] == LINK)
    member: Mapping[str, Any] = model["members"][link.get("teacher", "teacher")]
    scheme, _, identity = (member.get("weights") or "").partition("://")
    return identity if scheme == "run" else None, member.get("sha256")


def plan_voxels(
    results: Results,
    benchmarks: Sequence[str],
    *,
    weights: Mapping[str, Path],
    runs: str | Path | None = None,
    pair: str | None = None,
) -> list[RunPlan]:
    """What is to be drawn for the pairs of some benchmarks that have PointDistiller; see `plan_runs`."""
    return plan_runs(results, benchmarks, chosen, tasks=TASKS, weights=weights, runs=runs, pair=pair)


def draw_voxels(
    plan: RunPlan, site: str | Path, *, results: Places, legend: Legend, count: int = 3
) -> tuple[Path, Voxels]:
    """Draw what a planned run's teacher chooses into a site's folder; returns the picture's path and what it says.

    Nothing is trained: centres and weights are of the data and the teacher alone.

    Args:
        results: the folder of records, which `site` may not lie in.
        legend: draws named colours, see `limbeck.leaderboard.pictures.panel_layout`.
        count: frames of the validation split.
    Raises: DataMissing, CorruptFile where data or weights are not those of the record; ConfigError for a count that
        the split does not have, and for a run whose taps are not of pillars; OutputError.
    """
    from limbeck.leaderboard.pictures.panels_voxels import draw_voxels as draw
    from limbeck.leaderboard.pictures.voxel_run import choose_again

    check_apart(site, results)
    record = plan.record
    seen = choose_again(record, plan.teachers, count)
    teacher, sha256 = teacher_of(record)
    heading = f"{plan.group.name}: voxels that {record.method} compares, of the validation split"
    frames = [frame.described(seen.largest_weight) for frame in seen.frames]
    picture = draw(seen, frames, heading, legend)
    return save_drawn(
        Voxels,
        plan,
        FOLDER,
        site,
        picture,
        teacher_record=teacher,
        teacher_sha256=sha256,
        tap=seen.tap,
        options=seen.options,
        batch_size=seen.batch_size,
        data=record.data.name,
        content_hash=seen.content_hash,
        draw_seed=DRAW_SEED,
        largest_weight=seen.largest_weight,
        frames=frames,
    )


def find_voxels(group: Group, site: str | Path) -> Voxels | None:
    """What a site's folder has for a group; None where nothing was drawn.

    Raises: StalePicture when a file is not whole, or another record or other weights would be drawn today.
    """
    return find_run(Voxels, FOLDER, group, site, chosen)
