"""Panels: the picture of examples, a row an image and a column a member; one drawing function a task."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from limbeck.engine.config import PLAIN
from limbeck.leaderboard.pictures.examples import BEST, WHY
from limbeck.leaderboard.pictures.panel_layout import Cell, Colour, Legend, Line, fitted, lay_out
from limbeck.leaderboard.pictures.panels_detection import draw_detection
from limbeck.leaderboard.pictures.panels_lidar import draw_lidar

if TYPE_CHECKING:
    from limbeck.leaderboard.pictures.example_images import Shown

# samples, heading, titles by member, data set, legend
Draw = Callable[[Sequence["Shown"], str, Mapping[str, str], Any, Legend], Image.Image]

IGNORE = 255
GAINED, LOST, SAME, IGNORED = range(4)
# light green, dark red, middle grey: told apart by lightness where hues are not
DIFFERENCE = np.array([(96, 205, 96), (186, 24, 40), (150, 150, 150), (0, 0, 0)], np.uint8)


def draw_segmentation(
    shown: Sequence[Shown], heading: str, titles: Mapping[str, str], dataset: Any, legend: Legend
) -> Image.Image:
    """Image, truth, each member's class map with its mIoU and pixel accuracy, and where plain and best differ.

    Args:
        shown: of `SegmentationAdapter`: `data` has inputs uint8 (1, 3, H, W); a prediction has pred and labels, both
            uint8 (1, H, W), 255 in labels for pixels that are no class.
        dataset: has `classes` and `palette`.
    """
    colours = np.zeros((256, 3), np.uint8)
    colours[: len(dataset.palette)] = dataset.palette
    lines, seen = [], set()
    for one in shown:
        maps = {member: found[0]["pred"][0].numpy() for member, found in one.predictions.items()}
        labels = one.predictions[PLAIN][0]["labels"][0].numpy()
        seen |= {int(value) for found in (labels, *maps.values()) for value in np.unique(found)}
        differs = difference(labels, maps[PLAIN], maps[BEST])
        cells = [
            Cell(fitted(one.data["inputs"][0].permute(1, 2, 0).numpy(), smooth=True)),
            Cell(fitted(colours[labels])),
        ]
        cells += [Cell(fitted(colours[found]), _figures(one.metrics[member])) for member, found in maps.items()]
        cells.append(Cell(fitted(DIFFERENCE[differs]), _shares(differs)))
        lines.append(Line(f"test sample {one.sample}: {WHY[one.chosen]}", cells))
    names = [(name, dataset.palette[index]) for index, name in enumerate(dataset.classes) if index in seen]
    signs = ["best student right, plain wrong", "plain student right, best wrong", "both right or both wrong"]
    signs += ["ignored"] if IGNORE in seen else []
    keys = [names, [(text, _rgb(row)) for text, row in zip(signs, DIFFERENCE)]]
    return lay_out(heading, ["image", "truth", *titles.values(), "where students differ"], lines, keys, legend)


PANELS: Mapping[str, Draw] = {
    "semantic-segmentation": draw_segmentation,
    "object-detection": draw_detection,
    "3d-object-detection": draw_lidar,
}


def difference(labels: np.ndarray, plain: np.ndarray, best: np.ndarray) -> np.ndarray:
    """GAINED where best alone is right, LOST where plain alone is, SAME elsewhere, IGNORED where labels are 255.

    Args:
        labels, plain, best: classes of pixels (H, W).
    Returns: uint8 (H, W).
    """
    hit, base = best == labels, plain == labels
    found = np.select([labels == IGNORE, hit & ~base, base & ~hit], [IGNORED, GAINED, LOST], SAME)
    return found.astype(np.uint8)


def _shares(differs: np.ndarray) -> str:
    counted = max(1, int((differs != IGNORED).sum()))
    gained, lost = (100.0 * int((differs == kind).sum()) / counted for kind in (GAINED, LOST))
    return f"green {gained:.1f} %, red {lost:.1f} %"


def _figures(metrics: Mapping[str, float]) -> str:
    return f"mIoU {metrics['mIoU']:.1f}, pixels {metrics['aAcc']:.1f} %"


def _rgb(row: np.ndarray) -> Colour:
    red, green, blue = row.tolist()
    return red, green, blue
