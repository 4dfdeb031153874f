"""DT-Visualization: what teacher and students believe the final image to be at each step (arXiv 2503.10637)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from pydantic import Field

from limbeck.engine.record import Finite, RunRecord
from limbeck.errors import ConfigError
from limbeck.leaderboard.checks import check_apart
from limbeck.leaderboard.pictures.generators import TASKS, Generator, described, shown, steps_of
from limbeck.leaderboard.pictures.members import Member, MembersPlan, OfMembers, find_members, plan_members
from limbeck.leaderboard.pictures.plans import save_drawn
from limbeck.leaderboard.places import Places
from limbeck.leaderboard.store import Group, Results

FOLDER = "trajectories"  # of a site; also the command that draws
SLOTS = 8  # of a strip: as many steps are drawn at most


class Trajectory(Generator):
    """A run, its steps, and when it has decided on its images."""

    times: list[int] = Field(description="of its steps, from noise on")
    drawn: list[int] = Field(description="the steps that are drawn, from 0")
    commitment: list[Finite] = Field(
        description="at each step: mean squared distance of the predicted image to the last one, over that of the "
        "class's mean image; 1 is nothing decided, 0 all"
    )


class Trajectories(OfMembers):
    """What lies beside a picture of trajectories as JSON."""

    trajectories_version: Literal[1] = 1
    data: str
    split: Literal["test"] = "test"
    content_hash: str = Field(description="of the requests")
    noise_seed: int = Field(description="of the requests")
    schedule_steps: int = Field(description="times of the noise schedule, the same for all")
    images: int = Field(description="requests that the commitment is over: the first")
    samples: list[int] = Field(description="requests that are drawn")
    classes: list[str] = Field(description="of the requests that are drawn")
    members: list[Trajectory]

    @property
    def runs(self) -> Sequence[Member]:
        return self.members


def stepwise(group: Group) -> list[RunRecord]:
    """The runs that are drawn: the teacher, and those students of the lowest seed that take several steps.

    Raises: ConfigError where no student does.
    """
    teachers = {r.id for r in group.teachers}
    found = [r for r in shown(group) if r.id in teachers or steps_of(r) > 1]
    if all(r.id in teachers for r in found):
        raise ConfigError(f"{group.name}: its students take one step, which has no course; name a pair of more steps")
    return found


def plan_trajectories(
    results: Results,
    benchmarks: Sequence[str],
    *,
    weights: Mapping[str, Path],
    runs: str | Path | None = None,
    pair: str | None = None,
) -> list[MembersPlan]:
    """What is to be drawn for the pairs of some benchmarks that have students of several steps; see `plan_members`."""
    return plan_members(results, benchmarks, stepwise, weights=weights, runs=runs, pair=pair, tasks=TASKS)


def draw_trajectories(
    plan: MembersPlan, site: str | Path, *, results: Places, count: int = 2, images: int = 100
) -> tuple[Path, Trajectories]:
    """Draw planned runs' trajectories into a site's folder; returns the picture's path and what it says.

    Args:
        results: the folder of records, which `site` may not lie in.
        count: requests that are drawn, the first. images: requests that the commitment is over, the first.
    Raises: DataMissing, CorruptFile where data or weights are not those of the records; ConfigError for more than there
        are requests, or fewer images than two a class; OutputError.
    """
    from limbeck.leaderboard.pictures.generator_run import load_generator, requests_of
    from limbeck.leaderboard.pictures.panels_trajectories import draw_trajectories as draw
    from limbeck.multimodal.diffusion.trajectory import commitment

    check_apart(site, results)
    if not 1 <= count <= images:
        raise ConfigError(f"--count is from 1 to the {images} of --images; got {count}")
    first = plan.records[0]
    asked = requests_of(first, images)
    members, strips, schedule = [], [], 0
    for record in plan.records:
        model = load_generator(record, plan.weights[record.id])
        made = model.generate(asked.labels, seed=asked.seed, record=True)
        assert made.x0s is not None
        course = commitment(made.x0s, labels=asked.labels)
        drawn, schedule = drawn_steps(len(made.times)), model.schedule.steps
        members.append(
            Trajectory(**described(record), times=made.times.tolist(), drawn=list(drawn), commitment=course.tolist())
        )
        strips.append(([made.x0s[step, :count] for step in drawn], made.images[:count]))
    names = [asked.classes[int(label)] for label in asked.labels[:count]]
    heading = f"{plan.group.name}: the final image as it is predicted at each step, from the same noise"
    picture = draw(strips, members, names, schedule, heading)
    return save_drawn(
        Trajectories,
        plan,
        FOLDER,
        site,
        picture,
        data=first.data.name,
        content_hash=first.data.content_hash,
        noise_seed=asked.seed,
        schedule_steps=schedule,
        images=images,
        samples=list(range(count)),
        classes=names,
        members=members,
    )


def drawn_steps(steps: int, slots: int = SLOTS) -> dict[int, int]:
    """Which of a sampler's steps are drawn, by slot of a strip: slot s stands at the share s / slots of the course."""
    if steps <= slots:
        return {step: round(step * slots / steps) for step in range(steps)}
    return {round(slot * steps / slots): slot for slot in range(slots)}


def find_trajectories(group: Group, site: str | Path) -> Trajectories | None:
    """What a site's folder has for a group; None where nothing was drawn.

    Raises: StalePicture when a file is not whole, or other records or weights would be drawn today.
    """
    return find_members(Trajectories, FOLDER, group, site, stepwise)
