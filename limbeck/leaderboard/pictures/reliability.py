"""Reliability diagrams of students with two heads: of which runs, their figures and files, and whether they hold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from pydantic import Field

from limbeck.engine.record import Finite, RunRecord
from limbeck.errors import ConfigError
from limbeck.leaderboard.checks import check_apart
from limbeck.leaderboard.pictures.members import (
    Member,
    MembersPlan,
    OfMembers,
    find_members,
    identity,
    lowest,
    plan_members,
)
from limbeck.leaderboard.pictures.plans import Strict, save_drawn
from limbeck.leaderboard.places import Places
from limbeck.leaderboard.store import Group, Results

if TYPE_CHECKING:
    from limbeck.leaderboard.pictures.panel_layout import Legend

FOLDER = "reliability"  # of a site; also the command that draws
BINS = 15  # as the records' calibration error has
HEADS = {"ce": "CE head", "kd": "KD head", "answer": "answer of both"}


class Bins(Strict):
    """Test samples by confidence, in equally wide bins from 0 to 1; accuracy and confidence are None in empty ones."""

    counts: list[int]
    accuracy: list[Finite | None] = Field(description="share of a bin's samples that are right")
    confidence: list[Finite | None] = Field(description="mean over a bin's samples")
    ece: Finite = Field(description="expected calibration error: mean |accuracy − confidence|, weighted by samples")
    top1: Finite = Field(description="of all samples, in percent")
    mean_confidence: Finite


class DualMember(Member):
    """A run with two heads, and what its file mixes them by."""

    alpha: Finite = Field(description="share of the CE head in the answer")
    beta: Finite = Field(description="temperature of the KD head in the answer")
    heads: dict[str, Bins] = Field(description="'ce', 'kd' at temperature 1, and 'answer'")


class Reliability(OfMembers):
    """What lies beside a picture of reliability diagrams as JSON."""

    reliability_version: Literal[1] = 1
    data: str
    split: Literal["test"] = "test"
    content_hash: str = Field(description="of the split")
    samples: int = Field(description="of the split, that have a label")
    members: list[DualMember]

    @property
    def runs(self) -> Sequence[Member]:
        return self.members


def bins_of(confidence: np.ndarray, right: np.ndarray, bins: int = BINS) -> Bins:
    """How sure and how right, bin by bin: [0, 1/bins), …, [1 − 1/bins, 1].

    Args:
        confidence: (N,) in [0, 1], the probability of the class that is answered. right: (N,) whether it is the label.
    """
    edges = np.linspace(0.0, 1.0, bins + 1)[1:-1]
    place = np.digitize(confidence, edges)
    counts = np.bincount(place, minlength=bins)
    sure, hits = (np.bincount(place, weights=v.astype(np.float64), minlength=bins) for v in (confidence, right))
    return Bins(
        counts=counts.tolist(),
        accuracy=[float(h / n) if n else None for h, n in zip(hits, counts)],
        confidence=[float(s / n) if n else None for s, n in zip(sure, counts)],
        ece=float(np.abs(hits - sure).sum() / len(confidence)),
        top1=float(100.0 * right.mean()),
        mean_confidence=float(confidence.mean()),
    )


def dual(group: Group) -> list[RunRecord]:
    """The runs that are drawn: of every method with two heads that of the lowest seed; variants are left out.

    Raises: ConfigError where there is none.
    """
    found = [r for r in lowest(group) if "top1_ce_head" in r.metrics and "top1_kd_head" in r.metrics]
    if not found:
        raise ConfigError(f"{group.name}: no record of a student with two heads; run DHO of the pair first")
    return found


def plan_reliability(
    results: Results,
    benchmarks: Sequence[str],
    *,
    weights: Mapping[str, Path],
    runs: str | Path | None = None,
    pair: str | None = None,
) -> list[MembersPlan]:
    """What is to be drawn for the pairs of some benchmarks that have students with two heads; see `plan_members`."""
    return plan_members(results, benchmarks, dual, weights=weights, runs=runs, pair=pair)


def draw_reliability(
    plan: MembersPlan, site: str | Path, *, results: Places, legend: Legend
) -> tuple[Path, Reliability]:
    """Draw planned runs' diagrams into a site's folder; returns the picture's path and what it says.

    Args:
        results: the folder of records, which `site` may not lie in.
        legend: draws named colours, see `limbeck.leaderboard.pictures.panel_layout`.
    Raises: DataMissing, CorruptFile where data or weights are not those of the records; OutputError.
    """
    from limbeck.leaderboard.pictures.panels_reliability import draw_reliability as draw
    from limbeck.leaderboard.pictures.reliability_run import head_bins

    check_apart(site, results)
    members, samples = [], 0
    for record in plan.records:
        seen = head_bins(record, plan.weights[record.id])
        samples = seen.samples
        members.append(DualMember(**identity(record), alpha=seen.alpha, beta=seen.beta, heads=seen.heads))
    sample = plan.records[0]
    picture = draw(
        members, f"{plan.group.name}: confidence and accuracy on the test split of {sample.data.name}", legend
    )
    return save_drawn(
        Reliability,
        plan,
        FOLDER,
        site,
        picture,
        data=sample.data.name,
        content_hash=sample.data.content_hash,
        samples=samples,
        members=members,
    )


def find_reliability(group: Group, site: str | Path) -> Reliability | None:
    """What a site's folder has for a group; None where nothing was drawn.

    Raises: StalePicture when a file is not whole, or other records or weights would be drawn today.
    """
    return find_members(Reliability, FOLDER, group, site, dual)
