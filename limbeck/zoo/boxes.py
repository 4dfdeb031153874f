"""Pictures of detections: labelled boxes over an image, and the files of both."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from limbeck.engine.weights import atomic_path, write_json
from limbeck.zoo.overlay import INK, OVERLAY, PAPER, READABLE, Colour, with_ending

if TYPE_CHECKING:
    from limbeck.zoo.predictor import DetectionPrediction

BOXES = "_boxes.json"


def draw_boxes(pixels: np.ndarray, boxes: np.ndarray, texts: Sequence[str], colours: Sequence[Colour]) -> Image.Image:
    """The image under boxes, each in its colour with its text; the first lie on top.

    An image whose longer side is under 256 pixels is drawn larger, each pixel a square.

    Args:
        pixels: uint8 (H, W, 3).
        boxes: (N, 4), x1 y1 x2 y2 in pixels of the image.
        texts, colours: one a box.
    """
    image = Image.fromarray(pixels)
    factor = max(1, READABLE // max(image.size))
    picture = image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)
    longer = max(picture.size)
    font, line = ImageFont.load_default(max(11, longer // 60)), max(2, longer // 300)
    draw = ImageDraw.Draw(picture)
    rows = list(zip((boxes * factor).round().astype(int).tolist(), texts, colours))
    for (x1, y1, x2, y2), text, colour in reversed(rows):
        # a box ends before the pixel x2, and a rectangle of Pillow's with it
        draw.rectangle((x1, y1, max(x1, x2 - 1), max(y1, y2 - 1)), outline=colour, width=line)
        left, top, right, bottom = draw.textbbox((0, 0), text, font=font)
        wide, tall = int(right - left) + 2 * line, int(bottom - top) + 2 * line
        x, y = max(0, min(x1, picture.width - wide)), y1 - tall if y1 >= tall else y1
        draw.rectangle((x, y, x + wide - 1, y + tall - 1), fill=colour)
        draw.text((x + line - left, y + line - top), text, fill=_readable_on(colour), font=font)
    return picture


def _readable_on(colour: Colour) -> Colour:
    red, green, blue = colour
    return INK if 0.299 * red + 0.587 * green + 0.114 * blue > 140 else PAPER


def write_boxes(prediction: DetectionPrediction, stem: Path) -> dict[str, Any]:
    """Write the picture, '<stem>_overlay.png', and the boxes, '<stem>_boxes.json', each whole or not at all.

    Returns: the prediction as JSON values, with the paths `overlay` and `boxes`.
    Raises: OutputError where they cannot be written.
    """
    overlay, boxes = with_ending(stem, OVERLAY), with_ending(stem, BOXES)
    found = prediction.to_dict()
    with atomic_path(overlay) as temporary:
        prediction.overlay().save(temporary, format="PNG")
    write_json(boxes, found)
    return found | {"overlay": str(overlay), "boxes": str(boxes)}
