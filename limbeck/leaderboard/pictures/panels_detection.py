"""The picture of examples of object detection: boxes in the colours of their classes, and which objects were found."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from limbeck.engine.config import PLAIN
from limbeck.leaderboard.pictures.examples import BEST, IOU, SCORE, WHY
from limbeck.leaderboard.pictures.panel_layout import PAPER, Cell, Colour, Legend, Line, lay_out

if TYPE_CHECKING:
    from limbeck.leaderboard.pictures.example_images import Shown

SIDE = 448  # pixels: the longer side of an image as it is drawn
WIDTH, SCORE_LETTERS, DASH = 2, 11, 5
GAINED, LOST, BOTH, MISSED = range(4)
# light green, dark red, middle grey, black (dashed too): told apart by lightness where hues are not
FOUND: Sequence[Colour] = ((96, 205, 96), (186, 24, 40), (150, 150, 150), (0, 0, 0))
SIGNS = ("best student alone found it", "plain student alone found it", "both found it", "neither found it (dashed)")


@dataclass(frozen=True)
class Detections:
    """Boxes of an image: float (N, 4), x1 y1 x2 y2; labels (N,); scores (N,), None for the truth."""

    boxes: np.ndarray
    labels: np.ndarray
    scores: np.ndarray | None = None


def draw_detection(
    shown: Sequence[Shown], heading: str, titles: Mapping[str, str], dataset: Any, legend: Legend
) -> Image.Image:
    """Image, true boxes, each member's boxes with scores and its mAP, and which objects plain and best found.

    Args:
        shown: of `DetectionAdapter`: `data` has inputs uint8 (1, 3, H, W); a prediction is what its `predict` gives.
        dataset: has `classes` and `palette`.
    """
    lines, seen, kinds = [], set(), set()
    for one in shown:
        truth = _truth(one.predictions[PLAIN][0])
        boxes = {member: _drawn(found[0]) for member, found in one.predictions.items()}
        states = differences(truth, boxes[PLAIN], boxes[BEST])
        seen |= {int(label) for found in (truth, *boxes.values()) for label in found.labels}
        kinds |= set(states.tolist())
        image = Image.fromarray(np.ascontiguousarray(one.data["inputs"][0].permute(1, 2, 0).numpy()))
        factor = SIDE / max(image.size)
        image = image.resize((round(image.width * factor), round(image.height * factor)), Image.Resampling.LANCZOS)
        cells = [Cell(image), Cell(_boxes(image, truth, factor, dataset.palette), f"{len(truth.labels)} objects")]
        cells += [
            Cell(_boxes(image, found, factor, dataset.palette), _figures(one.metrics[member]))
            for member, found in boxes.items()
        ]
        cells.append(Cell(_objects(image, truth.boxes, states, factor), counts_of(states)))
        lines.append(Line(f"test sample {one.sample}: {WHY[one.chosen]}", cells))
    return lay_out(
        heading,
        ["image", "truth", *titles.values(), "found by which student"],
        lines,
        keys_of(dataset, seen, kinds),
        legend,
    )


def keys_of(dataset: Any, seen: Collection[int], kinds: Collection[int]) -> list[list[tuple[str, Colour]]]:
    """The legends: classes that occur, and kinds of found and missed objects that do."""
    names = [(name, dataset.palette[index]) for index, name in enumerate(dataset.classes) if index in seen]
    return [names, [(text, FOUND[kind]) for kind, text in enumerate(SIGNS) if kind in kinds]]


def differences(truth: Detections, plain: Detections, best: Detections) -> np.ndarray:
    """Of each true object: GAINED where best alone found it, LOST where plain alone did, else BOTH or MISSED.

    Returns: int64 (N,).
    """
    return states(found_objects(truth, best), found_objects(truth, plain))


def states(hit: np.ndarray, base: np.ndarray) -> np.ndarray:
    """GAINED, LOST, BOTH or MISSED, from whether best and whether plain found an object, bool (N,) each."""
    return np.select([hit & ~base, base & ~hit, hit & base], [GAINED, LOST, BOTH], MISSED)


def found_objects(truth: Detections, found: Detections) -> np.ndarray:
    """Whether each true object has a box of its class, of score 0.3 or more and IoU 0.5 or more; bool (N,).

    A box may count for several objects, unlike in the mAP.
    """
    counted = (np.inf if found.scores is None else found.scores) >= SCORE
    right = (truth.labels[:, None] == found.labels[None]) & counted
    return (right & (overlaps(truth.boxes, found.boxes) >= IOU)).any(1)


def overlaps(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """IoU of boxes (N, 4) and (M, 4), x1 y1 x2 y2: (N, M)."""
    low, high = np.maximum(a[:, None, :2], b[None, :, :2]), np.minimum(a[:, None, 2:], b[None, :, 2:])
    shared = (high - low).clip(0).prod(2)
    one, other = ((x[:, 2:] - x[:, :2]).prod(1) for x in (a, b))
    return shared / np.maximum(one[:, None] + other[None] - shared, 1e-9)


def _truth(batch: Mapping[str, Any]) -> Detections:
    """Objects that are counted: neither padding nor crowds."""
    kept = batch["gt_labels"][0] >= 0
    if "gt_crowd" in batch:
        kept = kept & ~batch["gt_crowd"][0].bool()
    return Detections(batch["gt_boxes"][0][kept].double().numpy(), batch["gt_labels"][0][kept].numpy())


def _drawn(batch: Mapping[str, Any]) -> Detections:
    """Boxes of a score that is drawn."""
    kept = (batch["pred"][0] >= 0) & (batch["scores"][0] >= SCORE)
    boxes, scores = (batch[key][0][kept].double().numpy() for key in ("boxes", "scores"))
    return Detections(boxes, batch["pred"][0][kept].numpy(), scores)


def _boxes(image: Image.Image, found: Detections, factor: float, palette: Sequence[Colour]) -> Image.Image:
    """The image with boxes, the best on top; every score on a plate of its class's colour."""
    page = image.copy()
    draw, font = ImageDraw.Draw(page), ImageFont.load_default(SCORE_LETTERS)
    order = range(len(found.labels)) if found.scores is None else np.argsort(found.scores, kind="stable").tolist()
    for index in order:
        colour = tuple(palette[int(found.labels[index])])
        x1, y1, x2, y2 = _corners(found.boxes[index], factor, image.size)
        draw.rectangle((x1, y1, x2, y2), outline=colour, width=WIDTH)
        if found.scores is not None:
            text = f"{found.scores[index]:.2f}"
            wide, tall = round(font.getlength(text)) + 3, SCORE_LETTERS + 1
            draw.rectangle((x1, y1, x1 + wide, y1 + tall), fill=colour)
            draw.text((x1 + 2, y1 - 1), text, fill=_ink(colour), font=font)
    return page


def _objects(image: Image.Image, boxes: np.ndarray, states: Iterable[int], factor: float) -> Image.Image:
    """The image, pale and grey, with every true object's outline; those that differ on top."""
    page = Image.blend(image.convert("L").convert("RGB"), Image.new("RGB", image.size, PAPER), 0.5)
    draw = ImageDraw.Draw(page)
    for box, state in sorted(zip(boxes, states, strict=True), key=lambda pair: -int(pair[1])):
        corners = _corners(box, factor, image.size)
        if state == MISSED:
            _dashed(draw, corners, FOUND[MISSED])
        else:
            draw.rectangle(corners, outline=FOUND[state], width=WIDTH + 1)
    return page


def _dashed(draw: ImageDraw.ImageDraw, corners: tuple[int, int, int, int], colour: Colour) -> None:
    x1, y1, x2, y2 = corners
    for x in range(x1, x2, 2 * DASH):
        for y in (y1, y2):
            draw.line((x, y, min(x + DASH, x2), y), fill=colour, width=WIDTH)
    for y in range(y1, y2, 2 * DASH):
        for x in (x1, x2):
            draw.line((x, y, x, min(y + DASH, y2)), fill=colour, width=WIDTH)


def _corners(box: np.ndarray, factor: float, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """In pixels of the drawn image, within it."""
    x1, y1, x2, y2 = (round(float(side) * factor) for side in box)
    x1, y1 = (min(max(low, 0), side - 1) for low, side in zip((x1, y1), size))
    x2, y2 = (min(max(high - 1, low), side - 1) for high, low, side in zip((x2, y2), (x1, y1), size))
    return x1, y1, x2, y2


def _ink(colour: Sequence[int]) -> Colour:
    """Black or white, whichever is read better on a colour."""
    red, green, blue = colour
    return (0, 0, 0) if 0.299 * red + 0.587 * green + 0.114 * blue > 140 else (255, 255, 255)


def counts_of(states: np.ndarray) -> str:
    gained, lost, both, missed = (int((states == kind).sum()) for kind in range(4))
    return f"green {gained}, red {lost}, grey {both}, dashed {missed}"


def _figures(metrics: Mapping[str, float]) -> str:
    return f"mAP {metrics['mAP']:.1f}, AP50 {metrics['AP50']:.1f}"
