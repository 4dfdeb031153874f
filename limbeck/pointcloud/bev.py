"""Pictures of a cloud from above, x upwards and y to the left: points, boxes, cells, and rings of distance."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from limbeck.pointcloud.boxes import bev_corners

Colour = tuple[int, int, int]
HEIGHTS = (-2.0, 1.0)  # metres above the sensor at and below which points are palest, at and above which darkest
GREYS = (208, 40)
RING = 10.0  # metres between two rings
FINE = 2  # pictures are drawn larger by it and shrunk, so that turned lines are smooth
LETTERS, DASH = 11, 5
PAPER, PALE, INK = (255, 255, 255), (214, 224, 234), (32, 32, 32)


class BirdsEye:
    """A picture of the ground around the sensor; what is drawn later lies on top, texts above all.

    Args:
        extent: x, y, z of the lowest corner, then of the highest one, in metres, as a point cloud range.
        longest: pixels of the picture's longer side.
    """

    def __init__(self, extent: Sequence[float], *, longest: int = 640) -> None:
        self.low, self.high = np.array(extent[:2], float), np.array(extent[3:5], float)
        tall, wide = (self.high - self.low).tolist()
        self.scale = longest / max(tall, wide)
        self.size = (round(wide * self.scale), round(tall * self.scale))
        self._image = Image.new("RGB", (self.size[0] * FINE, self.size[1] * FINE), PAPER)
        self._texts: list[tuple[float, float, str, Colour | None]] = []

    def pixels(self, places: np.ndarray) -> np.ndarray:
        """Column and row, in pixels of the finished picture, of x and y (…, 2)."""
        return (self.high - np.asarray(places, float))[..., ::-1] * self.scale

    def rings(self) -> None:
        """Circles about the sensor, 10 m apart, with their distance on the line ahead."""
        draw = self._draw()
        column, row = self.pixels(np.zeros(2)).tolist()
        farthest = float(np.hypot(*np.maximum(np.abs(self.low), np.abs(self.high))))
        for ring in range(1, math.floor(farthest / RING) + 1):
            reach = ring * RING * self.scale
            circle = [(column - reach) * FINE, (row - reach) * FINE, (column + reach) * FINE, (row + reach) * FINE]
            draw.ellipse(circle, outline=PALE, width=FINE)
            self._texts.append((column + 2, row - reach + 1, f"{ring * RING:g} m", None))

    def points(self, points: np.ndarray) -> None:
        """Points (P, ≥ 3), each a pixel, the higher the darker and on top; what is out of sight is left out."""
        points = points[np.argsort(points[:, 2], kind="stable")]
        shade = np.interp(points[:, 2], HEIGHTS, GREYS).round().astype(np.uint8)
        corners = np.floor(self.pixels(points[:, :2])).astype(int) * FINE
        self._fill(corners, (FINE, FINE), np.repeat(shade[:, None], 3, 1))

    def cells(self, places: np.ndarray, size: Sequence[float], colours: np.ndarray) -> None:
        """Upright rectangles: their centres (n, 2) and their one size along x and y in metres, uint8 (n, 3) colours."""
        tall, wide = (max(1, round(side * self.scale * FINE)) for side in size)
        corners = self.pixels(np.asarray(places) + np.asarray(size, float) / 2) * FINE
        self._fill(np.floor(corners + 0.5).astype(int), (wide, tall), colours)

    def boxes(
        self, boxes: np.ndarray, colours: Sequence[Colour], texts: Sequence[str] = (), *, dashed: bool = False
    ) -> None:
        """Outlines of boxes (M, 7), the first on top, with a line from the middle to the front.

        Args:
            colours: one a box.
            texts: none, or one a box, which stands above it on a plate of its colour.
        """
        draw = self._draw()
        corners = self.pixels(bev_corners(boxes))
        middles = self.pixels(np.asarray(boxes)[:, :2])
        for index in reversed(range(len(corners))):
            ring = corners[index]
            front = (ring[0] + ring[3]) / 2
            for start, end in [*zip(ring, np.roll(ring, -1, 0)), (middles[index], front)]:
                for a, b in _dashes(start, end) if dashed else [(start, end)]:
                    draw.line([*(a * FINE), *(b * FINE)], fill=colours[index], width=2 * FINE)
            if texts:
                self._texts.append((*ring[ring[:, 1].argmin()], texts[index], colours[index]))

    def image(self) -> Image.Image:
        """The picture, RGB."""
        page = self._image.reduce(FINE)
        draw, font = ImageDraw.Draw(page), ImageFont.load_default(LETTERS)
        for column, row, text, plate in self._texts:
            if plate is None:
                draw.text((column, row), text, fill=(120, 140, 160), font=font)
                continue
            wide, tall = round(font.getlength(text)) + 3, LETTERS + 2
            left = min(max(round(column) - wide // 2, 0), self.size[0] - wide)
            top = min(max(round(row) - tall - 1, 0), self.size[1] - tall)
            draw.rectangle((left, top, left + wide, top + tall), fill=plate)
            draw.text((left + 2, top), text, fill=readable_on(plate), font=font)
        return page

    def _draw(self) -> ImageDraw.ImageDraw:
        return ImageDraw.Draw(self._image)

    def _fill(self, corners: np.ndarray, size: tuple[int, int], colours: np.ndarray) -> None:
        """Fill rectangles of one size, from upper left corners; of those that meet the last one is seen."""
        canvas = np.array(self._image)
        for right in range(size[0]):
            for down in range(size[1]):
                column, row = corners[:, 0] + right, corners[:, 1] + down
                seen = (column >= 0) & (column < canvas.shape[1]) & (row >= 0) & (row < canvas.shape[0])
                canvas[row[seen], column[seen]] = colours[seen]
        self._image = Image.fromarray(canvas)


def _dashes(start: np.ndarray, end: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    length = float(np.hypot(*(end - start)))
    for begin in np.arange(0, max(length, 1e-6), 2 * DASH):
        yield tuple(start + (end - start) * min(1.0, at / max(length, 1e-6)) for at in (begin, begin + DASH))  # type: ignore[misc]


def readable_on(colour: Colour) -> Colour:
    """Black or white, whichever is read better on a colour."""
    red, green, blue = colour
    return INK if 0.299 * red + 0.587 * green + 0.114 * blue > 140 else PAPER
