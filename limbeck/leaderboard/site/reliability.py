"""What the page's template shows of a picture of reliability diagrams: its address, a caption, a text in its place."""

from __future__ import annotations

from typing import Any

from limbeck.leaderboard.figures import number
from limbeck.leaderboard.pictures.plans import picture_view
from limbeck.leaderboard.pictures.reliability import BINS, FOLDER, HEADS, Reliability


def reliability_view(found: Reliability) -> dict[str, Any]:
    """Everything that the template shows of one picture."""
    return picture_view(found, FOLDER, _alt(found), _text(found))


def _text(found: Reliability) -> str:
    return (
        f"All {found.samples} labelled test samples in {BINS} equally wide bins of confidence, the probability of the "
        "class that is answered. A bar is the share of a bin that is right; on the diagonal a student is as sure as it "
        "is right. The KD head is shown at temperature 1, the answer as α and β mix both heads. ECE: mean distance of "
        "confidence and accuracy over bins, weighted by samples. Each method's run of the lowest seed."
    )


def _alt(found: Reliability) -> str:
    """The figures of every diagram in words."""
    rows = []
    for one in found.members:
        heads = [
            f"{name} ECE {number(100 * b.ece, 1)} %, right {number(b.top1, 1)} %, mean confidence "
            f"{number(100 * b.mean_confidence, 1)} %"
            for head, name in HEADS.items()
            for b in [one.heads[head]]
        ]
        rows.append(f"{one.method}, seed {one.seed}: {', '.join(heads)}")
    return f"Reliability diagrams on the test split of {found.data}. {'; '.join(rows)}."
