"""What the page's template shows of a picture of masks: its address, a caption and a text in its place."""

from __future__ import annotations

from typing import Any

from limbeck.leaderboard.figures import number
from limbeck.leaderboard.pictures.masks import FOLDER, Masks
from limbeck.leaderboard.pictures.plans import picture_view


def masks_view(found: Masks) -> dict[str, Any]:
    """Everything that the template shows of one picture."""
    return picture_view(found, FOLDER, _alt(found), _text(found))


def _text(found: Masks) -> str:
    """Whose masks these are, how images and maps were chosen, and by how much the masks changed."""
    height, width = found.map_size
    count, last = len(found.ranges), found.epochs[-1]
    samples = f"{_and([str(s) for s in found.samples])} of the validation split, drawn at random with a fixed seed"
    chosen = _and([str(index + 1) for index in found.moved_most])
    return (
        f"{_origin(found)} Samples {samples}; both networks in evaluation mode. Heat maps: of the {count} spatial "
        f"masks at {found.levels[found.finest]} ({height}×{width}), the mean, and {chosen}, which changed most; one "
        f"scale of colours from 0 to 1 for all. Mean absolute change from the start to epoch {last}: "
        f"{_changes(found)}. Over all epochs and these images the masks reached {_reached(found)}."
    )


def _origin(found: Masks) -> str:
    if found.same_run:
        return (
            f"{found.method} of seed {found.seed}, trained again from its record's config: the student's weights are "
            "the record's, byte for byte."
        )
    return (
        f"{found.method} of seed {found.seed}, trained again from its record's config: the student's weights are not "
        f"the record's (sha256 {found.rerun_sha256[:12]}… for {found.student_sha256[:12]}…), so these are masks of "
        "another run of that config."
    )


def _changes(found: Masks) -> str:
    """By kind and level."""
    kinds = []
    for kind, curves in found.curves.items():
        levels = [f"{number(line[-1], 4)} at {name}" for name, line in zip(found.levels, curves.change, strict=True)]
        kinds.append(f"{kind} masks {_and(levels)}")
    return "; ".join(kinds)


def _reached(found: Masks) -> str:
    """The narrowest span of values that all drawn masks lie in."""
    low, high = min(low for low, _ in found.ranges), max(high for _, high in found.ranges)
    return f"{number(low, 3)} to {number(high, 3)}"


def _alt(found: Masks) -> str:
    epochs = _and([str(epoch) for epoch in found.epochs])
    return (
        f"Images of {found.data} in rows, spatial masks of {found.method} after epochs {epochs} in columns. Mean "
        f"absolute change: {_changes(found)}; values from {_reached(found)}."
    )


def _and(words: list[str]) -> str:
    *first, last = words
    return f"{', '.join(first)} and {last}" if first else last
