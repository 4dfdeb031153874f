"""The picture of controls: images by scale, a row a model; below, the attribute against the scale, a line a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from PIL import Image
from torch import Tensor

from limbeck.leaderboard.pictures.controls import Curve
from limbeck.leaderboard.pictures.generators import Generator, Taught, cost_text
from limbeck.leaderboard.pictures.panel_layout import PAPER, Cell, Line, lay_out, stacked
from limbeck.leaderboard.pictures.plots import Series, beside, key, plot
from limbeck.multimodal.diffusion.sheet import image_sheet

CELL = 84  # pixels of an image, roughly: rows of images are about as wide as the plots


def draw_controls(
    teachers: Sequence[Generator],
    students: Sequence[Taught],
    curves: Sequence[Curve],
    images: Mapping[str, Tensor],
    scales: Sequence[float],
    attribute: str,
    heading: str,
) -> Image.Image:
    """Of the teachers and one student a method.

    Args:
        images: by record, (S, N, C, H, W) at each scale.
        attribute: in words, with its unit.
    """
    shown = [*teachers, *students]
    own = {t.record: t.record for t in teachers} | {s.record: s.teacher for s in students}
    lines = [
        Line(_name(one), [Cell(image_sheet(at, len(at), cell=CELL)) for at in images[one.record]]) for one in shown
    ]
    titles = [f"scale {scale:+g}" if scale else "scale 0" for scale in scales]
    page = lay_out(heading, titles, lines, [], lambda entries, width, size: Image.new("RGB", (width, 1), PAPER))
    found = {(c.slider, c.model): c for c in curves}

    def lines_of(title: str, pairs: Sequence[tuple[str, str]]) -> Image.Image:
        series = [Series(one.method, scales, found[pair].means) for one, pair in zip(shown, pairs, strict=True)]
        return plot(title, series, ("scale of the slider", attribute))

    plots = beside(
        [
            lines_of("The teacher's slider, on each model", [(own[m.record], m.record) for m in shown]),
            lines_of("Each model's slider, on that model", [(m.record, m.record) for m in shown]),
            lines_of("Each model's slider, on the teacher", [(m.record, own[m.record]) for m in shown]),
        ]
    )
    width = max(page.width, plots.width)
    return stacked([page, plots, key([_name(one) for one in shown], width)])


def _name(one: Generator) -> str:
    return f"{one.method}, seed {one.seed}: {cost_text(one)}"
