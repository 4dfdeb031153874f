"""The picture of examples: colours counted against the maps, and room for every text."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageFont

from limbeck.leaderboard.pictures.example_images import Shown
from limbeck.leaderboard.pictures.panel_layout import LETTERS
from limbeck.leaderboard.pictures.panels import DIFFERENCE, GAINED, IGNORE, IGNORED, LOST, SAME, difference
from limbeck.leaderboard.pictures.panels import draw_segmentation as draw

PALETTE = [(10, 20, 30), (200, 30, 220), (250, 240, 10)]
DATASET = SimpleNamespace(classes=["road", "sky", "never seen"], palette=PALETTE)
TITLES = dict(teacher="teacher", plain="plain student", best="best student: CWD")
LABELS = [[0, 0, 1, 255], [0, 1, 1, 1]]
MAPS = dict(teacher=LABELS, plain=[[0, 1, 1, 0], [1, 1, 0, 0]], best=[[0, 0, 1, 1], [0, 1, 0, 1]])
IMAGE = (90, 91, 92)


def shown(sample: int = 7, chosen: Any = "random", factor: int = 1) -> Shown:
    def tensor(values: list[list[int]]) -> torch.Tensor:
        return torch.tensor(np.kron(values, np.ones((factor, factor)))[None]).to(torch.uint8)

    known = [[0 if v == IGNORE else v for v in row] for row in LABELS]
    maps = MAPS | dict(teacher=known)
    predictions = {m: [dict(pred=tensor(v), labels=tensor(LABELS))] for m, v in maps.items()}
    pixels = torch.tensor(IMAGE, dtype=torch.uint8)[None, :, None, None].expand(1, 3, 2 * factor, 4 * factor)
    metrics = {m: {"mIoU": 40.0, "aAcc": 80.0} for m in maps}
    return Shown(sample, chosen, dict(inputs=pixels), predictions, metrics)


class Legends:
    """Draws blank legends and keeps what they were asked for."""

    def __init__(self) -> None:
        self.entries: list[list[tuple[str, Any]]] = []

    def __call__(self, entries: Any, width: int, size: int) -> Image.Image:
        self.entries.append(list(entries))
        return Image.new("RGB", (width, 5), (255, 255, 255))


def colours(picture: Image.Image) -> dict[Any, int]:
    found = picture.getcolors(1 << 24)
    assert found is not None
    return {colour: number for number, colour in found}


def test_difference_is_what_a_loop_says() -> None:
    rng = np.random.default_rng(3)
    labels, plain, best = (rng.integers(0, 3, (6, 5)).astype(np.uint8) for _ in range(3))
    labels[0, :3] = IGNORE
    found = difference(labels, plain, best)
    for place in np.ndindex(labels.shape):
        truth, a, b = labels[place], plain[place], best[place]
        wanted = SAME
        if truth == IGNORE:
            wanted = IGNORED
        elif b == truth != a:
            wanted = GAINED
        elif a == truth != b:
            wanted = LOST
        assert found[place] == wanted
    assert found.dtype == np.uint8


def test_every_pixel_of_the_maps_has_its_colour() -> None:
    picture = draw([shown()], "toy", TITLES, DATASET, Legends())
    found, block = colours(picture), 64 * 64  # 4 pixels wide, drawn 256 wide
    maps = [LABELS, shown().predictions["teacher"][0]["pred"][0].tolist(), MAPS["plain"], MAPS["best"]]
    for label in (0, 1):
        assert found[PALETTE[label]] == block * sum(row.count(label) for values in maps for row in values)
    assert found[IMAGE] == 8 * block
    # of 8 pixels: best alone is right on three, plain alone on none, one is ignored; and one is ignored in the truth
    assert found[tuple(DIFFERENCE[GAINED].tolist())] == 3 * block
    assert found[tuple(DIFFERENCE[SAME].tolist())] == pytest.approx(4 * block, abs=100)  # letters have greys too
    assert found[tuple(DIFFERENCE[IGNORED].tolist())] == 2 * block
    assert tuple(DIFFERENCE[LOST].tolist()) not in found


def test_legend_has_the_classes_that_occur_and_the_signs() -> None:
    legends = Legends()
    draw([shown()], "toy", TITLES, DATASET, legends)
    classes, signs = legends.entries
    assert classes == [("road", PALETTE[0]), ("sky", PALETTE[1])]
    assert [text for text, _ in signs] == [
        "best student right, plain wrong",
        "plain student right, best wrong",
        "both right or both wrong",
        "ignored",
    ]
    assert [np.array(colour).tolist() for _, colour in signs] == DIFFERENCE.tolist()


def test_a_row_for_each_sample_and_room_for_long_titles() -> None:
    one = draw([shown()], "toy", TITLES, DATASET, Legends())
    two = draw([shown(), shown(9, "difference")], "toy", TITLES, DATASET, Legends())
    assert two.width == one.width
    assert colours(two)[IMAGE] == 2 * colours(one)[IMAGE]
    name = "best student: " + "W" * 60
    wide = draw([shown()], "toy", TITLES | dict(best=name), DATASET, Legends())
    more = round(ImageFont.load_default(LETTERS).getlength(name)) - 256
    assert wide.width - one.width == more > 0


@pytest.mark.parametrize(("factor", "width"), [(1, 256), (50, 200), (90, 360), (200, 384)])
def test_small_images_grow_by_whole_factors_and_large_ones_shrink(factor: int, width: int) -> None:
    picture = draw([shown(factor=factor)], "toy", TITLES, DATASET, Legends())
    assert colours(picture)[IMAGE] == width * width // 2
