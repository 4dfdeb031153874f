"""Sample grids: generated images of a pair's teacher and students from the same noise, and which runs they are of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from pydantic import Field

from limbeck.engine.record import Finite
from limbeck.leaderboard.checks import check_apart
from limbeck.leaderboard.figures import number
from limbeck.leaderboard.pictures.generators import TASKS, Generator, cost_text, described, shown
from limbeck.leaderboard.pictures.members import Member, MembersPlan, OfMembers, find_members, plan_members
from limbeck.leaderboard.pictures.plans import DRAW_SEED, save_drawn
from limbeck.leaderboard.places import Places
from limbeck.leaderboard.store import Group, Results
from limbeck.leaderboard.table import decimals, title

FOLDER = "samples"  # of a site; also the command that draws


class Sampled(Generator):
    """A run, and its figure on all requests of the test split, as its record says."""

    value: Finite


class Samples(OfMembers):
    """What lies beside a picture of sample grids as JSON."""

    samples_version: Literal[1] = 1
    data: str
    split: Literal["test"] = "test"
    content_hash: str = Field(description="of the requests")
    primary_metric: str
    noise_seed: int = Field(description="of the requests")
    rows: int = Field(description="of images a class, the first that are requested")
    classes: list[str] = Field(description="one a column")
    real: str = Field(description="the data set of the real images")
    real_hash: str = Field(description="of the split that they are of")
    draw_seed: int = Field(description="of the real images")
    members: list[Sampled]

    @property
    def runs(self) -> Sequence[Member]:
        return self.members


def sampled_text(one: Sampled, metric: str) -> str:
    """'PD, seed 0: 1 step, 1 network call, FD-digits 28.40'."""
    figure = f"{title(metric)} {number(one.value, decimals([one.value]))}"
    return f"{one.method}, seed {one.seed}: {cost_text(one)}, {figure}"


def plan_samples(
    results: Results,
    benchmarks: Sequence[str],
    *,
    weights: Mapping[str, Path],
    runs: str | Path | None = None,
    pair: str | None = None,
) -> list[MembersPlan]:
    """What is to be drawn for the pairs of some benchmarks of generated images; see `plan_members`."""
    return plan_members(results, benchmarks, shown, weights=weights, runs=runs, pair=pair, tasks=TASKS)


def draw_samples(plan: MembersPlan, site: str | Path, *, results: Places, rows: int = 3) -> tuple[Path, Samples]:
    """Draw planned runs' grids into a site's folder; returns the picture's path and what it says.

    Image k is of the noise and class of the k-th request of the test split, for every run.

    Args:
        results: the folder of records, which `site` may not lie in.
        rows: images of each class.
    Raises: DataMissing, CorruptFile where data or weights are not those of the records; ConfigError for more rows than
        there are requests; OutputError.
    """
    from limbeck.leaderboard.pictures.generator_run import load_generator, real_images, requests_of, rows_by_class
    from limbeck.leaderboard.pictures.panels_samples import draw_samples as draw

    check_apart(site, results)
    first = plan.records[0]
    classes = list(requests_of(first, 1).classes)
    asked = requests_of(first, rows * len(classes))
    real = real_images(first)
    chosen = rows_by_class(real.labels, len(classes), rows, DRAW_SEED)
    grids = []
    for record in plan.records:
        model = load_generator(record, plan.weights[record.id])
        grids.append(model.generate(asked.labels, seed=asked.seed).images)
    members = [Sampled(**described(record), value=record.value) for record in plan.records]
    heading = f"{plan.group.name}: images of {first.data.name} from the same noise, a class a column"
    picture = draw(real.pixels[chosen], grids, members, first.primary_metric, len(classes), heading)
    return save_drawn(
        Samples,
        plan,
        FOLDER,
        site,
        picture,
        data=first.data.name,
        content_hash=first.data.content_hash,
        primary_metric=first.primary_metric,
        noise_seed=asked.seed,
        rows=rows,
        classes=classes,
        real=real.name,
        real_hash=real.content_hash,
        draw_seed=DRAW_SEED,
        members=members,
    )


def find_samples(group: Group, site: str | Path) -> Samples | None:
    """What a site's folder has for a group; None where nothing was drawn.

    Raises: StalePicture when a file is not whole, or other records or weights would be drawn today.
    """
    return find_members(Samples, FOLDER, group, site, shown)
