"""Control distillation, measured: a slider of the teacher used on its students, and the reverse (arXiv 2503.10637).

Sliders are trained on the training split, and measured on the noise of the requests. There is no record of it: the
figures lie beside the picture as JSON, and the picture's plots and the page's table are made of that file alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

from pydantic import Field, model_validator

from limbeck.engine.record import Finite, RunRecord, Sha256
from limbeck.errors import ConfigError, UnknownName
from limbeck.leaderboard.checks import check_apart
from limbeck.leaderboard.pictures.generators import (
    TASKS,
    Generator,
    Measured,
    Taught,
    deployed_of,
    described,
    measured,
    taught_of,
    with_teachers,
)
from limbeck.leaderboard.pictures.members import MembersPlan, find_members, plan_members
from limbeck.leaderboard.pictures.plans import Strict, save_drawn
from limbeck.leaderboard.places import Places
from limbeck.leaderboard.store import Group, Results

FOLDER = "controls"  # of a site; also the command that draws
SLIDER_SEED = 0
DRAWN = 3  # requests whose images are drawn, the first: each of another class
ATTRIBUTES = {  # in words
    "ink_mass": "ink mass (mean intensity, 0 to 1)",
    "width": "width of the ink in pixels",
    "height": "height of the ink in pixels",
}


class Bounds(Strict):
    """A figure and its 95 % bootstrap interval over images."""

    value: Finite
    low: Finite
    high: Finite


class Slider(Strict):
    """A low-rank adapter that was trained on one run's model."""

    trained_on: str = Field(description="record")
    sha256: Sha256 = Field(description="of its state")
    times: list[int] | None = Field(description="of its training, those of the run's sampler; None is all")


class Curve(Strict):
    """What a slider does on one model."""

    slider: str = Field(description="record that it was trained on")
    model: str = Field(description="record that it is used on")
    means: list[Finite] = Field(description="mean attribute of the images at each scale")
    image_slopes: list[Finite] = Field(description="least-squares slope of each image's attribute against the scale")
    slope: Bounds = Field(description="their mean")
    ratio: Bounds | None = Field(
        description="the slope over that on the model that the slider was trained on; None on that one, and where its "
        "own slope is not told from 0"
    )


class Controls(Measured[Taught]):
    """What lies beside a picture of controls as JSON."""

    controls_version: Literal[1] = 1
    train_hash: str | None = Field(description="of the split that sliders are trained on, the teacher's training split")
    attribute: str
    scales: list[Finite]
    steps: int = Field(description="of a slider's training")
    rank: int
    slider_seed: int
    drawn: list[str] = Field(description="classes of the images that are drawn")
    sliders: list[Slider]
    curves: list[Curve]

    @model_validator(mode="after")
    def _agree(self) -> Controls:
        """Raises: ValueError for figures that do not follow from each other."""
        found = {(c.slider, c.model): c for c in self.curves}
        middle = fmean(self.scales)
        scale = sum((s - middle) ** 2 for s in self.scales)
        for one in self.curves:
            own = found.get((one.slider, one.slider))
            if (len(one.means), len(one.image_slopes)) != (len(self.scales), self.images) or own is None:
                raise ValueError("a curve lacks numbers, or its slider one on the model that it was trained on")
            slope = sum((s - middle) * m for s, m in zip(self.scales, one.means)) / scale
            wanted = [(one.slope.value, slope), (one.slope.value, fmean(one.image_slopes))]
            if one.ratio is not None:
                wanted.append((one.ratio.value * own.slope.value, one.slope.value))
            if not all(math.isclose(a, b, rel_tol=1e-6, abs_tol=1e-9) for a, b in wanted):
                raise ValueError(f"slope or ratio of {one.slider} on {one.model} is not what its numbers give")
        return self

    def curve(self, slider: str, model: str) -> Curve:
        """Of a slider's and a model's record."""
        return next(c for c in self.curves if (c.slider, c.model) == (slider, model))


def controlled(group: Group) -> list[RunRecord]:
    """The runs that are measured: students of all seeds, and their teachers, which come first.

    Plain is left out: it does not start with the teacher's weights, so that a slider has no reason to fit. So are BOOT
    students, whose network reads the starting noise and never a noisy image (see `BOOTGenerator`): neither can a slider
    be trained on one, nor does the teacher's speak of what it reads.

    Raises: ConfigError where there is none.
    """
    found = with_teachers(group, lambda record: deployed_of(record).get("boot_t_min") is None)
    if not found:
        raise ConfigError(
            f"{group.name}: no student left that its teacher's slider could fit: plain, BOOT, and students without a "
            "teacher's record are not measured; run another method of the pair"
        )
    return found


def plan_controls(
    results: Results,
    benchmarks: Sequence[str],
    *,
    weights: Mapping[str, Path],
    runs: str | Path | None = None,
    pair: str | None = None,
) -> list[MembersPlan]:
    """What is to be measured for the pairs of some benchmarks that have students of a recorded teacher."""
    return plan_members(results, benchmarks, controlled, weights=weights, runs=runs, pair=pair, tasks=TASKS)


def check_attribute(name: str) -> None:
    """Raises: UnknownName."""
    if name not in ATTRIBUTES:
        raise UnknownName("attribute", name, ATTRIBUTES)


def first_seeds(members: Sequence[Taught]) -> list[Taught]:
    """The student of the lowest seed of each method."""
    found: dict[str, Taught] = {}
    for one in sorted(members, key=lambda m: m.seed):
        found.setdefault(one.method, one)
    return [found[name] for name in dict.fromkeys(m.method for m in members)]


def draw_controls(
    plan: MembersPlan,
    site: str | Path,
    *,
    results: Places,
    attribute: str = "ink_mass",
    steps: int = 300,
    images: int = 100,
    rank: int = 4,
    report: Any = None,
) -> tuple[Path, Controls]:
    """Train sliders of an attribute, measure them on planned runs, and draw it; returns the picture's path and figures.

    One slider a teacher, at all times, and one of each method's lowest seed, at the times of its own sampler.

    Args:
        results: the folder of records, which `site` may not lie in.
        attribute: a name of `ATTRIBUTES`.
        steps, rank: of a slider's training, see `train_slider`.
        images: requests of the test split whose noise and classes are sampled from, the first.
        report: gets how many trainings and curves are done, and of how many.
    Raises: UnknownName; DataMissing, CorruptFile where data or weights are not those of the records; ConfigError, also
        for a student of another architecture than its teacher; OutputError.
    """
    from limbeck.leaderboard.pictures.control_run import Asked, measure
    from limbeck.leaderboard.pictures.panels_controls import draw_controls as draw

    check_apart(site, results)
    check_attribute(attribute)
    known = {record.id: record for record in plan.records}
    taught = taught_of(plan)
    members = [Taught(**described(known[one]), teacher=teacher) for one, teacher in taught.items()]
    first = first_seeds(members)
    asked = Asked(attribute, steps, images, rank, SLIDER_SEED, DRAWN)
    seen = measure(known, taught, [m.record for m in first], plan.weights, asked, report or (lambda done, total: None))
    curves = [Curve(**one) for one in seen.curves]
    common = measured(plan, taught, seen.seed, images)
    said = common | dict(
        train_hash=seen.train_hash,
        attribute=attribute,
        scales=list(seen.scales),
        steps=steps,
        rank=rank,
        slider_seed=SLIDER_SEED,
        drawn=seen.drawn,
        members=members,
        sliders=[Slider(**one) for one in seen.sliders],
        curves=curves,
    )
    teachers: list[Generator] = common["teachers"]
    name, classes = attribute.replace("_", " "), ", ".join(seen.drawn)
    heading = f"{plan.group.name}: images of classes {classes} from the same noise, by the teacher's slider of {name}"
    picture = draw(teachers, first, curves, seen.images, seen.scales, ATTRIBUTES[attribute], heading)
    return save_drawn(Controls, plan, FOLDER, site, picture, **said)


def find_controls(group: Group, site: str | Path) -> Controls | None:
    """What a site's folder has for a group; None where nothing was measured.

    Raises: StalePicture when a file is not whole, or other records or weights would be measured today.
    """
    return find_members(Controls, FOLDER, group, site, controlled)
