"""What the page's template shows of a picture of chosen images: its address, a caption and a text in its place."""

from __future__ import annotations

from typing import Any

from limbeck.leaderboard.pictures.chosen import FOLDER, Chosen
from limbeck.leaderboard.pictures.plans import picture_view


def chosen_view(found: Chosen) -> dict[str, Any]:
    """Everything that the template shows of one picture."""
    return picture_view(found, FOLDER, _alt(found), _text(found))


def _text(found: Chosen) -> str:
    first = next(r for one in found.members for r in one.rounds)
    return (
        f"What each method chose from {found.pool} images to be labelled, by the student of the round before, in "
        f"reading order; {first.before} images had a label before the first choice. Each method's run of the lowest "
        "seed; below a sheet how many classes are among all images of that choice."
    )


def _alt(found: Chosen) -> str:
    """How many classes every choice has, in words."""
    rows = []
    for one in found.members:
        rounds = [f"round {r.number} {r.covered} classes in {len(r.ids)} images" for r in one.rounds]
        rows.append(f"{one.method}: {', '.join(rounds)}")
    return f"Chosen images of {found.data}, which has {found.classes} classes. {'; '.join(rows)}."
