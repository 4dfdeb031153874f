"""What digit scenes are drawn from: textured backgrounds, clutter strokes and warped digits, from numbers in [0, 1)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np

MARGIN = 2  # pixels around the frame and around every glyph's silhouette, for soft edges
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)
_EDGE = 0.46  # ink level, of 1, at which a digit ends
_CROSS = cv2.getStructuringElement(cv2.MORPH_CROSS, (3, 3))
_POINTS = 12  # of a stroke


@dataclass(frozen=True, slots=True)
class Glyph:
    """A digit, warped.

    Args:
        shape: silhouette, bool (h, w), tight.
        ink: coverage float32 (h + 2·MARGIN, w + 2·MARGIN) in [0, 1]; a half or more in the silhouette only.
        rim: the same of the silhouette grown by a pixel.
    """

    shape: np.ndarray
    ink: np.ndarray
    rim: np.ndarray


def warp_digit(digit: np.ndarray, side: float, dice: np.ndarray) -> Glyph:
    """A digit uint8 (8, 8) at `side` pixels, turned by up to 12° and made up to 15 % wider or narrower (dice (2,))."""
    angle = math.radians(24.0 * (dice[0] - 0.5))
    stretch = math.exp(0.28 * (dice[1] - 0.5))
    patch = math.ceil(1.35 * side) + 2 * MARGIN + 2
    turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    # OpenCV enlarges smoothly and turns bilinearly in a tenth of the time that it takes to turn smoothly.
    enlarged = cv2.resize(np.pad(digit, 1), (40, 40), interpolation=cv2.INTER_CUBIC).astype(np.float32) / 255
    linear = turn @ np.diag([stretch * side / 32, side / 32])
    shift = (patch - 1) / 2 - linear @ [19.5, 19.5]
    level = cv2.warpAffine(enlarged, np.column_stack([linear, shift]), (patch, patch), flags=cv2.INTER_LINEAR)
    shape = level >= _EDGE
    rows, columns = np.flatnonzero(shape.any(1)), np.flatnonzero(shape.any(0))
    top, bottom, left, right = rows[0], rows[-1] + 1, columns[0], columns[-1] + 1
    level = level[top - MARGIN : bottom + MARGIN, left - MARGIN : right + MARGIN]
    ink = np.clip((level - _EDGE) * (side / 8) + 0.5, 0, 1)  # about one pixel from 0 to 1
    return Glyph(shape[top:bottom, left:right], ink, cv2.dilate(ink, _CROSS))


def place(shape: np.ndarray, taken: np.ndarray, dice: np.ndarray, least: float) -> tuple[int, int, np.ndarray] | None:
    """Put a silhouette (h, w) behind what is there already.

    Args:
        taken: bool (H, W), the pixels of all digits in front of it. dice: (K, 2), places to try in turn.
        least: share of the silhouette that has to stay visible.
    Returns: top, left and the visible part, bool (h, w); None where no place does.
    """
    height, width = shape.shape
    wanted = max(1.0, least * np.count_nonzero(shape))
    room = np.array(taken.shape) - (height, width) + 1
    if room.min() < 1:
        return None
    for top, left in (dice * room).astype(np.int64).tolist():
        free = shape & ~taken[top : top + height, left : left + width]
        if np.count_nonzero(free) >= wanted:
            return top, left, free
    return None


def background_dice(height: int, width: int) -> int:
    """How many numbers `background` needs for an image of this size."""
    return 8 + 48 + _fine(height) * _fine(width)


def background(height: int, width: int, dice: np.ndarray) -> np.ndarray:
    """A colour, a gradient and noise of two bands, as float32 (height, width, 3), roughly in [20, 235]."""
    colour = 60 + 135 * dice[:3]
    angle, slope, coarse, fine = 2 * math.pi * dice[3], 70 * dice[4], 20 + 50 * dice[5], 8 + 34 * dice[6]
    y = np.linspace(-0.5, 0.5, height, dtype=np.float32)[:, None] * np.float32(slope * math.sin(angle))
    x = np.linspace(-0.5, 0.5, width, dtype=np.float32)[None, :] * np.float32(slope * math.cos(angle))
    low = (dice[8:56].reshape(4, 4, 3) - 0.5) * coarse + colour
    high = (dice[56:].reshape(_fine(height), _fine(width)) - 0.5) * fine
    out = cv2.resize(low.astype(np.float32), (width, height), interpolation=cv2.INTER_CUBIC)
    grey = cv2.resize(high.astype(np.float32), (width, height), interpolation=cv2.INTER_CUBIC)
    out += (grey + y + x)[:, :, None]
    return out


def _fine(length: int) -> int:
    return max(2, -(-length // 5))


def strokes(dice: np.ndarray, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Curves that are no digits: ticks shorter than any digit, and waves and arcs, thinner and mostly longer than one.

    Args:
        dice: (S, 8).
    Returns: points float64 (S, 12, 2) in x, y, and thicknesses int64 (S,) in pixels.
    """
    tick = dice[:, 0] < 0.45
    length = np.where(tick, 4 + 4 * dice[:, 1], 36 + 60 * dice[:, 1])
    t = np.linspace(-0.5, 0.5, _POINTS)
    turning = np.where(tick, 0.0, 1.2 * (dice[:, 2] - 0.5))
    wave = np.where(tick, 0.0, 0.8 * dice[:, 3])
    heading = 2 * np.pi * dice[:, 4:5] + turning[:, None] * t + wave[:, None] * np.sin(4 * np.pi * t)
    step = np.stack([np.cos(heading), np.sin(heading)], axis=-1) * (length / _POINTS)[:, None, None]
    points = np.cumsum(step, axis=1)
    points += dice[:, None, 5:7] * (width, height) - points.mean(axis=1, keepdims=True)
    return points, np.where(tick, 2, 1) + (dice[:, 7] < 0.3)


def draw_strokes(canvas: np.ndarray, dice: np.ndarray) -> None:
    """Draw clutter on uint8 (H, W, 3), in place; dice (S, 13)."""
    height, width = canvas.shape[:2]
    points, thicknesses = strokes(dice, height, width)
    middle = np.clip(points[:, _POINTS // 2].astype(np.int64), 0, (width - 1, height - 1))
    colours = against(canvas[middle[:, 1], middle[:, 0]] @ _LUMA, dice[:, 8:13], 30, 90)
    fixed = np.round(points * 8).astype(np.int32)  # OpenCV's fixed point with 3 binary places
    for line, colour, thickness in zip(fixed, colours.tolist(), thicknesses.tolist()):
        cv2.polylines(canvas, [line], False, colour, thickness, cv2.LINE_AA, 3)


def against(luma: np.ndarray, dice: np.ndarray, low: float, high: float) -> np.ndarray:
    """Random colours whose luma differs from `luma` (N,) by low … high; dice (N, 5). Returns float32 (N, 3)."""
    contrast = low + (high - low) * dice[:, 0]
    up, down = luma + contrast <= 245, luma - contrast >= 10
    lighter = np.where(up & down, dice[:, 1] < 0.5, luma < 128)
    tint = (dice[:, 2:5] - 0.5) * 140
    tint = tint - (tint @ _LUMA)[:, None]
    return np.clip((luma + np.where(lighter, contrast, -contrast))[:, None] + tint, 0, 255).astype(np.float32)


def stand_out(backdrop: np.ndarray, glyph: Glyph, top: int, left: int, dice: np.ndarray) -> tuple[np.ndarray, bool]:
    """A colour for a digit, float32 (3,), and whether it is lighter than the backdrop that it will cover; dice (5,)."""
    height, width = glyph.shape.shape
    under = backdrop[top + MARGIN : top + MARGIN + height, left + MARGIN : left + MARGIN + width]
    luma = under[glyph.shape].mean(axis=0) @ _LUMA
    colour = against(luma[None], dice[None], 80, 160)[0]
    return colour, bool(colour @ _LUMA > luma)


def draw_glyph(canvas: np.ndarray, glyph: Glyph, top: int, left: int, colour: np.ndarray, lighter: bool) -> None:
    """Draw a digit on float32 (H + 2·MARGIN, W + 2·MARGIN, 3), in place.

    A rim, dark around light digits and light around dark ones, keeps it apart from other digits of its colour.
    """
    height, width = glyph.ink.shape
    under = canvas[top : top + height, left : left + width]
    rim = np.float32(0 if lighter else 255)
    under += (rim - under) * (0.35 * glyph.rim)[:, :, None]
    under += (colour - under) * glyph.ink[:, :, None]
