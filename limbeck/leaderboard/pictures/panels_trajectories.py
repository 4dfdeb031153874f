"""The picture of trajectories: a row a run, a strip an image; below, when each run has decided."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor

from limbeck.leaderboard.pictures.generators import cost_text
from limbeck.leaderboard.pictures.panel_layout import GAP, PAPER, Cell, Line, lay_out, stacked
from limbeck.leaderboard.pictures.plots import Series, beside, key, plot
from limbeck.leaderboard.pictures.trajectories import SLOTS, Trajectory, drawn_steps
from limbeck.multimodal.diffusion.sheet import image_sheet

Strip = tuple[Sequence[Tensor], Tensor]  # predicted images (count, C, H, W), one a drawn step, and the images made


def draw_trajectories(
    strips: Sequence[Strip], members: Sequence[Trajectory], classes: Sequence[str], schedule: int, heading: str
) -> Image.Image:
    """Strips over the same course of time, from noise on the left to the image at the right end.

    Args:
        strips: one a member.
        classes: of each image, by name.
        schedule: T, times of the noise schedule.
    """
    lines = []
    for one, (steps, made) in zip(members, strips, strict=True):
        places = [*drawn_steps(len(one.times)).values(), SLOTS]
        rows = [torch.stack([*(x0s[k] for x0s in steps), made[k]]) for k in range(len(made))]
        cells = [Cell(_spaced(image_sheet(row, SLOTS + 1, places=places))) for row in rows]
        lines.append(Line(f"{one.method}, seed {one.seed}: {cost_text(one)}", cells))
    titles = [f"request {k}, class {name}; at the right end the image" for k, name in enumerate(classes)]
    page = lay_out(heading, titles, lines, [], lambda entries, width, size: Image.new("RGB", (width, 1), PAPER))
    curves = [Series(one.method, [(schedule - 1 - t) / schedule for t in one.times], one.commitment) for one in members]
    names = ("share of the course from noise to image", "0 is decided, 1 no nearer than the class's mean image")
    course = plot("How far the predicted image is from the last one", curves, names, zero=(True, True))
    return stacked([page, beside([course]), key([f"{m.method}, {cost_text(m)}" for m in members], page.width)])


def _spaced(strip: Image.Image) -> Image.Image:
    """With room on its right: strips of two images are not to be read as one."""
    page = Image.new("RGB", (strip.width + 4 * GAP, strip.height), PAPER)
    page.paste(strip, (0, 0))
    return page
