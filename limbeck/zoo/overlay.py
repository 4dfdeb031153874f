"""Pictures of a segmentation: the class map over its image with a legend, and the files of both."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from limbeck.engine.weights import atomic_path
from limbeck.errors import ShapeMismatch, UserError
from limbeck.zoo.images import image_files

if TYPE_CHECKING:
    from limbeck.zoo.predictor import SegmentationPrediction

Colour = tuple[int, int, int]
OVERLAY, LABELS = "_overlay.png", "_labels.png"
OPACITY = 0.5  # of the colours over the image
READABLE = 256  # pixels; smaller images are drawn larger, by a whole factor
INK, PAPER, FRAME = (32, 32, 32), (255, 255, 255), (128, 128, 128)


def draw_overlay(
    pixels: np.ndarray, labels: np.ndarray, shares: Mapping[str, float], colours: Mapping[str, Colour]
) -> Image.Image:
    """The image under its classes' colours at half opacity, and below it the classes that occur with their shares.

    An image whose longer side is under 256 pixels is drawn larger, each pixel a square.

    Args:
        pixels: uint8 (H, W, 3).
        labels: uint8 (H, W), the place of each pixel's class in `colours`.
        shares: class → part of the pixels, in the legend's order.
        colours: class → RGB, in the order of labels.
    Raises: ShapeMismatch when image and map differ in size.
    """
    if pixels.shape[:2] != labels.shape:
        raise ShapeMismatch(
            f"an image of {pixels.shape[:2]} pixels does not fit a class map of {labels.shape}; "
            "predict the image again if it has changed since"
        )
    painted = Image.fromarray(np.array(list(colours.values()), np.uint8)[labels])
    blended = Image.blend(Image.fromarray(pixels), painted, OPACITY)
    factor = max(1, READABLE // max(blended.size))
    picture = blended.resize((blended.width * factor, blended.height * factor), Image.Resampling.NEAREST)
    entries = [(f"{name}: {percent(share)}", colours[name]) for name, share in shares.items()]
    legend = draw_legend(entries, picture.width, max(13, max(picture.size) // 60))
    page = Image.new("RGB", (max(picture.width, legend.width), picture.height + legend.height), PAPER)
    page.paste(picture, (0, 0))
    page.paste(legend, (0, picture.height))
    return page


def percent(share: float) -> str:
    """'12.3 %'; what would round to nothing is '< 0.1 %'."""
    return f"{100 * share:.1f} %" if share >= 0.0005 else "< 0.1 %"


def draw_legend(entries: Sequence[tuple[str, Colour]], width: int, size: int) -> Image.Image:
    """Swatches with texts in columns.

    Args:
        width: of the image in pixels; it is wider where one column needs more.
        size: of letters and swatches in pixels.
    """
    font = ImageFont.load_default(size)
    gap = size // 2
    column = max(round(font.getlength(text)) for text, _ in entries) + size + 3 * gap
    columns = min(len(entries), max(1, (width - gap) // column))
    rows, line = -(-len(entries) // columns), size + gap
    page = Image.new("RGB", (max(width, columns * column + gap), rows * line + 2 * gap), PAPER)
    draw = ImageDraw.Draw(page)
    for place, (text, colour) in enumerate(entries):
        left, top = gap + place // rows * column, gap + place % rows * line
        draw.rectangle((left, top, left + size, top + size), fill=colour, outline=FRAME)
        draw.text((left + size + gap, top + size / 2), text, fill=INK, font=font, anchor="lm")
    return page


def plan_outputs(
    paths: Sequence[Path],
    out: Path,
    endings: Sequence[str] = (OVERLAY, LABELS),
    find: Callable[[Path], Sequence[Path]] = image_files,
) -> list[tuple[Path, Path]]:
    """Every image, or cloud, of these files and folders, and the path in `out` that what is written for it begins with.

    A folder's images keep their places below it. Of several images of one name the later ones are numbered.

    Args:
        endings: of those names.
        find: gives the images of a folder.
    Raises: UserError for a folder without images, or when a picture would take the place of an image.
    """
    plan: list[tuple[Path, Path]] = []
    taken: dict[Path, Path] = {}
    for path in paths:
        for file in find(path) if path.is_dir() else [path]:
            name = file.relative_to(path) if path.is_dir() else Path(file.name)
            wanted = stem = out / name.with_suffix("")
            number, real = 1, file.resolve()
            while taken.setdefault(stem, real) != real:
                number += 1
                stem = wanted.with_name(f"{wanted.name}_{number}")
            plan.append((file, stem))
    images = {file.resolve() for file, _ in plan}
    for picture in (with_ending(stem, ending) for _, stem in plan for ending in endings):
        if picture.resolve() in images:
            raise UserError(f"{picture} is an image to predict and would be overwritten; choose another --out")
    return plan


def with_ending(stem: Path, ending: str) -> Path:
    """'out/a.v2' and '_overlay.png' give 'out/a.v2_overlay.png'."""
    return stem.with_name(stem.name + ending)


def write_pictures(prediction: SegmentationPrediction, stem: Path) -> dict[str, Any]:
    """Write overlay and label map, each whole or not at all, over older ones of that name.

    The label map has one byte a pixel, the class's place in the card's `classes`, and the image's size.

    Returns: the prediction as JSON values, with the paths `overlay` and `labels`.
    Raises: OutputError where they cannot be written.
    """
    overlay, labels = with_ending(stem, OVERLAY), with_ending(stem, LABELS)
    for path, picture in ((overlay, prediction.overlay()), (labels, Image.fromarray(prediction.map))):
        with atomic_path(path) as temporary:
            picture.save(temporary, format="PNG")
    return prediction.to_dict() | {"overlay": str(overlay), "labels": str(labels)}
