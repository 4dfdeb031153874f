"""What the page's template shows of a picture of examples: its address, a caption and a text in its place."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from limbeck.engine.config import PLAIN, TEACHER
from limbeck.leaderboard.figures import number
from limbeck.leaderboard.pictures.examples import BEST, FOLDER, IOU, LIDAR_IOU, SCORE, Examples, Sample
from limbeck.leaderboard.pictures.plans import picture_view


def examples_view(found: Examples) -> dict[str, Any]:
    """Everything that the template shows of one picture."""
    return picture_view(found, FOLDER, _alt(found), _text(found))


def _text(found: Examples) -> str:
    """How images and students were chosen, and what the last column's colours mean."""
    metric, best = found.primary_metric, found.members[BEST]
    random = [s for s in found.samples if s.chosen == "random"]
    largest = [s for s in found.samples if s.chosen == "difference"]
    drawn = f"Of {found.candidates} test samples {_numbers(random)} {_be(random)} drawn at random with a fixed seed"
    if largest:
        drawn += (
            f"; {_numbers(largest)} {_be(largest)}, among the others, where the {metric} of the two students differs "
            "most, whichever is better"
        )
    return (
        f"{drawn}. {best.method} has the best mean {metric} on validation; both students are of seed {best.seed}. "
        f"{_colours(found.task, best.method)} Figures are of each image alone."
    )


def _colours(task: str, best: str) -> str:
    """What the last column shows."""
    if task == "3d-object-detection":
        small, _, car = LIDAR_IOU
        return (
            f"Frames from above, boxes of score {SCORE} or more in the colour of their class. Last column, the true "
            f"objects that count: green where {best} alone found it with a box of its class, of that score and, from "
            f"above, IoU {car} or more ({small} of pedestrians and cyclists), red where the plain student alone did, "
            "grey where both, dashed black where neither; false boxes are not in this column."
        )
    if task == "object-detection":
        return (
            f"Boxes of score {SCORE} or more are drawn in the colour of their class. Last column, the true objects: "
            f"green where {best} alone found it with a box of its class, of that score and IoU {IOU} or more, red "
            "where the plain student alone did, grey where both, dashed black where neither; false boxes are not in "
            "this column."
        )
    return (
        f"Last column: green where {best} is right and the plain student wrong, red the other way round, grey where "
        "both are right or both wrong, black where no class is labelled."
    )


def _alt(found: Examples) -> str:
    """The picture in words, with every member's figure of every image."""
    names = _names(found)
    rows = []
    for sample in found.samples:
        figures = [
            f"{names[member]} {number(metrics[found.primary_metric], 1)}"
            for member, metrics in sample.metrics.items()
            if found.primary_metric in metrics
        ]
        rows.append(f"sample {sample.sample}: {', '.join(figures)}")
    columns = ", ".join(["image", "truth", *names.values()])
    said = f"{found.primary_metric} of each image: {'; '.join(rows)}"
    return f"Test images of {found.data} in columns {columns}, and where the two students differ. {said}."


def _names(found: Examples) -> dict[str, str]:
    known = {TEACHER: "teacher", PLAIN: "plain student"}
    return {member: known.get(member, one.method) for member, one in found.members.items()}


def _numbers(samples: Sequence[Sample]) -> str:
    *first, last = [str(s.sample) for s in samples]
    return f"{', '.join(first)} and {last}" if first else last


def _be(samples: Sequence[Sample]) -> str:
    return "is" if len(samples) == 1 else "are"
