"""Digit scenes: real handwritten digits over textures, with exact masks and boxes; made from a seed, nothing to get.

Of synthetic benchmarks, it is in the line of cluttered MNIST (arXiv 1406.6247) and MultiMNIST
(arXiv 1603.08575), with occlusion, colour, and scikit-learn's digits for MNIST's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from limbeck.engine._scene_parts import (
    MARGIN,
    Glyph,
    background,
    background_dice,
    draw_glyph,
    draw_strokes,
    place,
    stand_out,
    warp_digit,
)
from limbeck.engine.augment import sample_uniforms
from limbeck.engine.data import SPLITS, content_hash
from limbeck.engine.digits import read_digits
from limbeck.engine.weights import sha256_json
from limbeck.errors import ConfigError

GENERATOR = 1  # counts up whenever the same arguments give other pixels
CLASSES = tuple("0123456789")
COUNTS = {"train": 2000, "val": 500, "test": 1000}
PALETTE = (  # of the digits
    (31, 119, 180),
    (255, 127, 14),
    (44, 160, 44),
    (214, 39, 40),
    (148, 103, 189),
    (140, 86, 75),
    (227, 119, 194),
    (188, 189, 34),
    (23, 190, 207),
    (255, 255, 255),
)
LEAST_VISIBLE = 0.6  # share of a digit's silhouette that no digit in front of it covers
LARGEST = 0.45  # a digit's side, as a share of the shorter side of the scene
GRAIN = 7.0  # half the range of the noise of single pixels
_SALT = 0x5CE9E5  # so that scenes share no random number with the augmentation of the same seed
_TRIES = 10
_DIGIT_DICE = 9 + 2 * _TRIES
_STROKE_DICE = 13


@dataclass(frozen=True, slots=True)
class Scene:
    """An image and everything that is in it. The N digits are ordered from front to back; N is at least 1.

    Args:
        image: RGB uint8 (H, W, 3).
        mask: uint8 (H, W); 0 background, 1 + digit where a digit is the front one.
        instances: uint8 (H, W); 0 background, 1 + n where digit n of the lists is the front one.
        boxes: float32 (N, 4), x1 y1 x2 y2 of the visible pixels; a single pixel (x, y) has the box x y x+1 y+1.
        labels: the digits, int64 (N,).
        visible: float32 (N,), the share of each silhouette that is visible, in [0.6, 1].
    """

    image: np.ndarray
    mask: np.ndarray
    instances: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray
    visible: np.ndarray


@dataclass(frozen=True, slots=True)
class _Placed:
    glyph: Glyph
    top: int
    left: int
    seen: np.ndarray
    label: int
    dice: np.ndarray


def checked_count(count: int | None, split: str, name: str) -> int:
    """How many scenes a split has; None takes the usual number. Raises: ConfigError for fewer than one."""
    count = COUNTS[split] if count is None else count
    if count < 1:
        raise ConfigError(f"count of {name} is at least 1; got {count}")
    return count


class SceneMaker:
    """Makes the scenes of a split; `maker(index)` depends on seed, split and index alone, not on earlier calls.

    Splits are made of disjoint digits. A digit that finds no place where enough of it stays visible is left out, so a
    crowded scene may have fewer than asked for.

    Args:
        split: 'train', 'val' or 'test'.
        seed: another one makes other scenes.
        size: height and width in pixels.
        digits: the fewest and the most digits to put into a scene.
        scale: the smallest and the largest side in pixels of a digit's 8 × 8 field; drawn log-uniformly, and at most
            0.45 of the scene's shorter side.
    Raises: UnknownName for the split; ConfigError for other values.

    Attributes:
        content_hash: of the generator, its arguments and the digits; known before a scene is made.
    """

    def __init__(
        self,
        split: str,
        *,
        seed: int = 0,
        size: Sequence[int] = (96, 96),
        digits: Sequence[int] = (3, 7),
        scale: Sequence[float] = (14.0, 32.0),
    ) -> None:
        self.glyphs, self.labels = read_digits(split)
        self.size = _checked(size, digits, scale)
        self.digits = (int(digits[0]), int(digits[1]))
        self.scale = (float(scale[0]), min(float(scale[1]), LARGEST * min(self.size)))
        self.seed = seed
        self._part = 4 * SPLITS.index(split)  # type: ignore[arg-type]  # read_digits has checked it
        height, width = self._canvas = (self.size[0] + 2 * MARGIN, self.size[1] + 2 * MARGIN)
        # One field of grain, twice as large as a scene: every scene cuts its own part out of it.
        grain = sample_uniforms(_SALT, 0, np.arange(2 * height), 2 * width)
        self._grain = ((grain - 0.5) * (2 * GRAIN)).astype(np.float32)
        self.content_hash = sha256_json(
            {
                "generator": GENERATOR,
                "split": split,
                "seed": seed,
                "size": self.size,
                "digits": self.digits,
                "scale": self.scale,
                "source": content_hash("digits", split, self.glyphs, self.labels),
            }
        )

    def __call__(self, index: int) -> Scene:
        """The scene of this index, 0 or more."""
        if index < 0:
            raise ConfigError(f"scenes are numbered from 0; got {index}")
        placed = self._place(index)
        mask, instances = np.zeros(self.size, np.uint8), np.zeros(self.size, np.uint8)
        canvas = self._backdrop(index)
        colours = [stand_out(canvas, one.glyph, one.top, one.left, one.dice) for one in placed]
        for number in range(len(placed) - 1, -1, -1):  # from back to front
            one = placed[number]
            rows, columns = np.nonzero(one.seen)
            mask[rows + one.top, columns + one.left] = 1 + one.label
            instances[rows + one.top, columns + one.left] = 1 + number
            draw_glyph(canvas, one.glyph, one.top, one.left, *colours[number])
        return Scene(
            image=self._finished(canvas, index),
            mask=mask,
            instances=instances,
            boxes=np.array([_box(one) for one in placed], np.float32),
            labels=np.array([one.label for one in placed], np.int64),
            visible=np.array([one.seen.sum() / one.glyph.shape.sum() for one in placed], np.float32),
        )

    def _dice(self, part: int, index: int, count: int) -> np.ndarray:
        return sample_uniforms(self.seed ^ _SALT, self._part + part, np.array([index]), count)[0]

    def _place(self, index: int) -> list[_Placed]:
        """The digits from front to back: each goes behind the ones before it."""
        low, high = self.digits
        dice = self._dice(0, index, 1 + high * _DIGIT_DICE)
        wanted = low + int(dice[0] * (high - low + 1))
        taken = np.zeros(self.size, bool)
        placed: list[_Placed] = []
        for row in dice[1:].reshape(high, _DIGIT_DICE)[:wanted]:
            chosen = int(row[0] * len(self.labels))
            side = self.scale[0] * (self.scale[1] / self.scale[0]) ** row[1]
            glyph = warp_digit(self.glyphs[chosen], side, row[2:4])
            found = place(glyph.shape, taken, row[9:].reshape(_TRIES, 2), LEAST_VISIBLE)
            if found is not None:
                top, left, seen = found
                taken[top : top + seen.shape[0], left : left + seen.shape[1]] |= seen
                placed.append(_Placed(glyph, top, left, seen, int(self.labels[chosen]), row[4:9]))
        return placed

    def _backdrop(self, index: int) -> np.ndarray:
        height, width = self._canvas
        colours = background(height, width, self._dice(1, index, background_dice(height, width)))
        canvas = np.clip(colours, 0, 255).astype(np.uint8)  # OpenCV's smooth lines want bytes
        dice = self._dice(2, index, 1 + 7 * _STROKE_DICE)
        draw_strokes(canvas, dice[1:].reshape(7, _STROKE_DICE)[: 3 + int(dice[0] * 5)])
        return canvas.astype(np.float32)

    def _finished(self, canvas: np.ndarray, index: int) -> np.ndarray:
        (height, width), dice = self.size, self._dice(3, index, 2)
        top, left = int(dice[0] * height), int(dice[1] * width)
        inner = canvas[MARGIN : MARGIN + height, MARGIN : MARGIN + width]
        grainy = inner + self._grain[top : top + height, left : left + width, None]
        return np.clip(grainy + 0.5, 0, 255).astype(np.uint8)


def _box(one: _Placed) -> tuple[int, int, int, int]:
    rows, columns = np.flatnonzero(one.seen.any(1)), np.flatnonzero(one.seen.any(0))
    x, y = one.left, one.top
    return x + int(columns[0]), y + int(rows[0]), x + int(columns[-1]) + 1, y + int(rows[-1]) + 1


def _checked(size: Sequence[int], digits: Sequence[int], scale: Sequence[float]) -> tuple[int, int]:
    """Height and width. Raises: ConfigError for what makes no scene."""
    if len(digits) != 2 or not 1 <= digits[0] <= digits[1] <= 250:
        raise ConfigError(f"digits of a scene are (fewest, most), from 1 to 250; got {tuple(digits)}")
    if len(scale) != 2 or not 8 <= scale[0] <= scale[1]:
        raise ConfigError(f"scale is (smallest, largest) side of a digit in pixels, 8 or more; got {tuple(scale)}")
    if len(size) != 2 or LARGEST * min(size) < scale[0]:
        least = int(np.ceil(scale[0] / LARGEST))
        raise ConfigError(f"size is (height, width) of a scene, {least} pixels or more; got {tuple(size)}")
    return int(size[0]), int(size[1])
