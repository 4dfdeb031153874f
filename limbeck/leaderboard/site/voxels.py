"""What the page's template shows of a picture of chosen voxels: its address, a caption and a text in its place."""

from __future__ import annotations

from statistics import fmean
from typing import Any

from limbeck.leaderboard.figures import number
from limbeck.leaderboard.pictures.plans import picture_view
from limbeck.leaderboard.pictures.voxels import FOLDER, ChosenVoxels, Voxels


def voxels_view(found: Voxels) -> dict[str, Any]:
    """Everything that the template shows of one picture."""
    return picture_view(found, FOLDER, _alt(found), _text(found))


def _text(found: Voxels) -> str:
    """Whose choice this is, how it was made, and what the figures say."""
    samples = ", ".join(str(frame.sample) for frame in found.frames)
    options = found.options
    shared = "over the batch" if options.get("scope") == "batch" else "a frame's share of it in each frame"
    weighted = (
        f"weighted by φ = N softmax(number of points / {options['temperature']:g})"
        if options.get("reweight") is True
        else "all weighted alike"
    )
    frames = found.frames
    rows = [
        fmean(getattr(one, name) for one in frames) for name in ("pillars_inside", "centres_inside", "weight_inside")
    ]
    pillars, centres, weight = (f"{number(100 * share, 1)} %" for share in rows)
    effective = ", ".join(f"{one.effective_centres:.0f} of {one.centres}" for one in frames)
    return (
        f"{found.method} of seed {found.seed} takes the {options['num_voxels']} {_sampled(options)} pillars of a batch "
        f"of {found.batch_size} frames as centres, {shared}, {weighted}. Choice and weights are of the data and the "
        "teacher alone, so nothing was trained again; the teacher's weights are those that the record names. Samples "
        f"{samples} of the validation split, drawn at random with a fixed seed, not augmented. Mean over them: "
        f"{pillars} of all pillars lie inside true boxes, {centres} of the centres, which carry {weight} of the "
        f"weight. Effective numbers of centres: {effective}."
    )


def _sampled(options: dict[str, Any]) -> str:
    kinds = {"top": "fullest", "bottom": "emptiest", "both": "fullest and emptiest", "random": "randomly drawn"}
    return kinds.get(str(options.get("sampling")), "chosen")


def _alt(found: Voxels) -> str:
    return (
        f"Frames of {found.data} from above, pillars and chosen centres. " + "; ".join(map(_said, found.frames)) + "."
    )


def _said(frame: ChosenVoxels) -> str:
    shares = [f"{100 * share:.1f} %" for share in (frame.pillars_inside, frame.centres_inside, frame.weight_inside)]
    return (
        f"sample {frame.sample}: {frame.pillars} pillars, {shares[0]} inside {frame.objects} boxes; {frame.centres} "
        f"centres, {shares[1]} inside, with {shares[2]} of the weight, count as {frame.effective_centres:.0f}"
    )
