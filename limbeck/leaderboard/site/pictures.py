"""Pictures that lie beside the site: which kinds there are, under which headings, and whether each still holds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from limbeck.leaderboard.pictures.chosen import find_chosen
from limbeck.leaderboard.pictures.controls import find_controls
from limbeck.leaderboard.pictures.examples import find_examples
from limbeck.leaderboard.pictures.hand_overs import find_hand_over
from limbeck.leaderboard.pictures.masks import find_masks
from limbeck.leaderboard.pictures.plans import StalePicture
from limbeck.leaderboard.pictures.reliability import find_reliability
from limbeck.leaderboard.pictures.samples import find_samples
from limbeck.leaderboard.pictures.trajectories import find_trajectories
from limbeck.leaderboard.pictures.voxels import find_voxels
from limbeck.leaderboard.site.chosen import chosen_view
from limbeck.leaderboard.site.controls import controls_view
from limbeck.leaderboard.site.examples import examples_view
from limbeck.leaderboard.site.hand_over import hand_over_view
from limbeck.leaderboard.site.masks import masks_view
from limbeck.leaderboard.site.reliability import reliability_view
from limbeck.leaderboard.site.samples import samples_view, trajectories_view
from limbeck.leaderboard.site.voxels import voxels_view
from limbeck.leaderboard.store import Group

Note = Callable[[str], object]
# kind, heading, what a reader of the screen hears before the group's name, what the JSON beside it has, and how to get
# what is shown of it
_KINDS: tuple[tuple[str, str, str, str, Callable[..., Any], Callable[..., dict[str, Any]]], ...] = (
    ("examples", "Examples", "Examples", "samples", find_examples, examples_view),
    ("masks", "Masks over training", "Masks", "every number", find_masks, masks_view),
    ("voxels", "Chosen voxels", "Voxels", "every number", find_voxels, voxels_view),
    (
        "reliability",
        "Reliability of both heads",
        "Reliability diagrams",
        "every bin",
        find_reliability,
        reliability_view,
    ),
    ("chosen", "Chosen images", "Chosen images", "every choice", find_chosen, chosen_view),
    ("samples", "Samples", "Samples", "seeds", find_samples, samples_view),
    ("trajectories", "Step by step", "Trajectories", "every number", find_trajectories, trajectories_view),
    (
        "hand-over",
        "Hand-over from teacher to student",
        "Hand-over",
        "every number",
        find_hand_over,
        hand_over_view,
    ),
    ("controls", "Controls that carry over", "Controls", "every number", find_controls, controls_view),
)


def pictures_of(group: Group, site: Path, note: Note | None) -> list[dict[str, Any]]:
    """What the templates show of a group's pictures that hold, each with `kind`, `heading`, `label`, `json_title`."""
    shown = []
    for kind, heading, label, has, find, view in _KINDS:
        try:
            found = find(group, site)
        except StalePicture as stale:
            if note is not None:
                note(str(stale))
            continue
        if found is not None:
            told = dict(
                kind=kind,
                heading=heading,
                label=f"{label} of {group.name}",
                json_title=f"records, {has} and hashes as JSON",
            )
            shown.append(view(found) | told)
    return shown
