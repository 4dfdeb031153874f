"""Images that a diffusion student of the zoo makes, as a grid: a row a class."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from PIL import Image, ImageDraw, ImageFont, PngImagePlugin
from torch import Tensor

from limbeck.engine.weights import atomic_path
from limbeck.errors import ConfigError, UnknownName
from limbeck.multimodal.diffusion.sheet import image_sheet
from limbeck.zoo.card import Card
from limbeck.zoo.load import load_student
from limbeck.zoo.overlay import INK, PAPER

COUNT = 8  # images of each class
LETTERS, GAP = 14, 8


def write_grid(
    name: str,
    out: str | Path,
    *,
    classes: str | None = None,
    count: int = COUNT,
    seed: int = 0,
    device: str = "cpu",
    zoo_dir: str | Path | None = None,
) -> dict[str, Any]:
    """Write a PNG of images, each row of one class; what made it stands in the file as text.

    Image c of a class and seed is the same whatever the count, as long as the classes are.

    Args:
        out: the file; written whole or not at all.
        classes: names or numbers, 'Sneaker,0'; all where not given.
        count: images of each class.
        device: 'cpu', 'cuda', 'cuda:N' or 'auto'.
    Returns: student, file, seed, classes, count, and network calls an image, as JSON values.
    Raises: UnknownName for a student or class; ConfigError for one that makes no images; CorruptFile; OutputError.
    """
    if count < 1:
        raise ConfigError(f"count is 1 or more, the images of each class; got {count}")
    model: Any = load_student(name, device=device, zoo_dir=zoo_dir)
    card = cast(Card, model.card)
    if not card.generates:
        raise ConfigError(f"{name} is of {card.task} and makes no images; name a student of image-generation")
    chosen = list(range(len(card.classes))) if classes is None else parse_classes(card, classes)
    asked = chosen * count  # round after round, so that more images leave the first ones as they are
    made = model.generate(asked, seed=seed)
    said = dict(student=name, seed=seed, classes=[card.classes[k] for k in chosen], count=count, calls=made.calls)
    text = PngImagePlugin.PngInfo()
    text.add_text("limbeck", json.dumps(said | dict(sha256=card.sha256)))
    picture = draw_grid(made.images, [card.classes[k] for k in chosen])
    with atomic_path(out) as temporary:
        picture.save(temporary, format="PNG", pnginfo=text)
    return said | dict(file=str(out))


def parse_classes(card: Card, text: str) -> list[int]:
    """Classes from their names or numbers, with commas between. Raises: UnknownName, ConfigError for none."""
    words = [word.strip() for word in text.split(",") if word.strip()]
    if not words:
        raise ConfigError(f"--classes names one class of {card.name} or more, such as {card.classes[0]}; got none")
    return [_class(card, word) for word in words]


def _class(card: Card, word: str) -> int:
    if word in card.classes:
        return card.classes.index(word)
    if word.isdecimal() and int(word) < len(card.classes):
        return int(word)
    raise UnknownName("class", word, [*card.classes, *map(str, range(len(card.classes)))], f"of {card.name}")


def draw_grid(images: Tensor, names: Sequence[str]) -> Image.Image:
    """A row a class, with its name on the left.

    Args:
        images: (K · count, C, H, W) in [−1, 1], round after round of the K classes.
    """
    rows, columns = len(names), len(images) // len(names)
    places = [k % rows * columns + k // rows for k in range(len(images))]
    sheet = image_sheet(images, columns, places=places)
    font = ImageFont.load_default(LETTERS)
    left = round(max(font.getlength(name) for name in names)) + 2 * GAP
    page = Image.new("RGB", (left + sheet.width, sheet.height), PAPER)
    page.paste(sheet, (left, 0))
    draw = ImageDraw.Draw(page)
    for row, name in enumerate(names):
        draw.text((left - GAP, (row + 0.5) * sheet.height / rows), name, fill=INK, font=font, anchor="rm")
    return page
