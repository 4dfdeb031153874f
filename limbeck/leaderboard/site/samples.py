"""What the page's template shows of sample grids and trajectories: addresses, captions and texts in their place."""

from __future__ import annotations

from typing import Any

from limbeck.leaderboard.figures import number
from limbeck.leaderboard.pictures import samples, trajectories
from limbeck.leaderboard.pictures.generators import cost_text
from limbeck.leaderboard.pictures.plans import picture_view
from limbeck.leaderboard.pictures.samples import Samples, sampled_text
from limbeck.leaderboard.pictures.trajectories import Trajectories
from limbeck.leaderboard.table import title


def samples_view(found: Samples) -> dict[str, Any]:
    """Everything that the template shows of one picture."""
    images = found.rows * len(found.classes)
    text = (
        f"The first {images} requests of the test split, a class a column: {', '.join(found.classes)}. Images in one "
        "place are from the same noise, as is what a sampler draws on the way. Real images are drawn at random from "
        f"{found.real} with a fixed seed. Each run is of its method's lowest seed; {title(found.primary_metric)} is "
        "its record's, over all requests."
    )
    rows = [sampled_text(m, found.primary_metric) for m in found.members]
    alt = f"Real and generated images of {found.data}, {found.rows} of each class. {'; '.join(rows)}."
    return picture_view(found, samples.FOLDER, alt, text)


def trajectories_view(found: Trajectories) -> dict[str, Any]:
    """Everything that the template shows of one picture."""
    text = (
        "Strips: what each run believes the final image to be on its way from noise, on the left, to the image, at the "
        "right end (DT-Visualization, arXiv 2503.10637); after guidance, from the same noise, at most "
        f"{trajectories.SLOTS} of its steps. Curves: mean squared distance of the predicted to the last image, over "
        f"that of the class's mean image; over {found.images} requests. Each run is of its method's lowest seed."
    )
    rows = [f"{m.method}, seed {m.seed}: {cost_text(m)}, {number(m.commitment[0], 2)}" for m in found.members]
    alt = (
        f"Predicted images of {found.data} step by step. How far the first step's prediction is from the last one: "
        f"{'; '.join(rows)}."
    )
    return picture_view(found, trajectories.FOLDER, alt, text)
