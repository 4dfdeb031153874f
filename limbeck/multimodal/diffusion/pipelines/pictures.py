"""Pictures of a hand-over: its images as a grid, and what was predicted at each step as a strip."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image, ImageDraw, ImageFont

from limbeck.engine.weights import write_json
from limbeck.errors import ConfigError

if TYPE_CHECKING:
    from limbeck.multimodal.diffusion.pipelines.hand_over import PipelineImages

PAPER, INK = "white", "black"
GAP = 4


def image_grid(found: PipelineImages, side: int = 512) -> Image.Image:
    """One row a prompt, one column a seed; images of at most `side` pixels."""
    columns = len(dict.fromkeys(found.seeds))
    rows = [found.images[start : start + columns] for start in range(0, len(found.images), columns)]
    return _table(rows, [f"seed {seed}" for seed in found.seeds[:columns]], side)


def prediction_strip(found: PipelineImages, side: int = 256) -> Image.Image:
    """DT-Visualization (arXiv 2503.10637): one row an image, one column a step, with its model and time above.

    Raises: ConfigError where nothing was recorded.
    """
    if not found.predicted:
        raise ConfigError("this hand-over recorded no predictions; sample with record=True")
    rows = [list(row) for row in zip(*found.predicted)]
    return _table(rows, [f"{whose} t={time:g}" for whose, time in found.steps], side)


def _table(rows: list[list[Image.Image]], titles: list[str], side: int) -> Image.Image:
    """Images of equal size under titles."""
    font = ImageFont.load_default()
    small = [[image.convert("RGB") for image in row] for row in rows]
    for row in small:
        for image in row:
            image.thumbnail((side, side))  # in place; smaller ones stay
    width, height = small[0][0].size
    column = max(width, *(int(font.getlength(title)) for title in titles)) + GAP
    top = 16
    page = Image.new("RGB", (column * len(titles) + GAP, top + (height + GAP) * len(small)), PAPER)
    draw = ImageDraw.Draw(page)
    for across, title in enumerate(titles):
        draw.text((GAP + across * column, 2), title, fill=INK, font=font)
        for down, row in enumerate(small):
            page.paste(row[across], (GAP + across * column, top + down * (height + GAP)))
    return page


def write_pictures(found: PipelineImages, folder: str | Path) -> dict[str, Any]:
    """Every image as PNG, `grid.png`, `strip.png` where predictions were recorded, and `hand_over.json`.

    Returns: what that JSON holds: calls, steps, and prompt, seed and file of every image.
    """
    out = Path(folder)
    out.mkdir(parents=True, exist_ok=True)
    images = []
    for index, (image, prompt, seed) in enumerate(zip(found.images, found.prompts, found.seeds)):
        name = f"{index:03d}_seed{seed}.png"
        image.save(out / name)
        images.append(dict(file=name, prompt=prompt, seed=seed))
    image_grid(found).save(out / "grid.png")
    if found.predicted:
        prediction_strip(found).save(out / "strip.png")
    facts = dict(
        base_calls=found.base_calls,
        distilled_calls=found.distilled_calls,
        steps=[dict(model=model, time=time) for model, time in found.steps],
        images=images,
    )
    write_json(out / "hand_over.json", facts)
    return facts
