"""The images that active loops chose first: of which runs, what was chosen, files, and whether they still hold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from pydantic import Field

from limbeck.engine.record import RunRecord
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

FOLDER = "chosen"  # of a site; also the command that draws


class Round(Strict):
    """What was chosen in one round, by the student of the round before."""

    number: int
    ids: list[int] = Field(description="of the pool, in order of choice")
    classes: list[int] = Field(description="their labels, as they were revealed")
    shown: int = Field(description="how many of them are drawn: the first")
    before: int = Field(description="images that had a label before")

    @property
    def covered(self) -> int:
        """Classes among the chosen."""
        return len(set(self.classes))


class Chooser(Member):
    """A run, and what it chose."""

    strategy: str
    rounds: list[Round]


class Chosen(OfMembers):
    """What lies beside a picture of chosen images as JSON."""

    chosen_version: Literal[1] = 1
    data: str
    train_hash: str | None = Field(description="of the training set of round 0")
    classes: int = Field(description="of the data set")
    pool: int = Field(description="images that there were to choose from, labelled ones included")
    members: list[Chooser]

    @property
    def runs(self) -> Sequence[Member]:
        return self.members


def choosers(group: Group) -> list[RunRecord]:
    """The runs that are drawn: of every method with a loop that of the lowest seed; variants are left out.

    Raises: ConfigError where there is none.
    """
    found = [r for r in lowest(group) if (r.config.get("loop") or {}).get("strategy")]
    if not found:
        raise ConfigError(f"{group.name}: no record of an active loop; run one of the pair first")
    return found


def plan_chosen(
    results: Results,
    benchmarks: Sequence[str],
    *,
    weights: Mapping[str, Path],
    runs: str | Path | None = None,
    pair: str | None = None,
) -> list[MembersPlan]:
    """What is to be drawn for the pairs of some benchmarks that have active loops; see `plan_members`.

    Args:
        weights: not looked at, for what was chosen lies beside a run's own weights.
    Raises: also ConfigError without runs.
    """
    if runs is None:
        place = f"out/{benchmarks[0]}/runs" if benchmarks else "out/active/runs"
        raise ConfigError(
            f"what was chosen lies in the folders of the runs, not in the records; name it with --runs, such as {place}"
        )
    return plan_members(results, benchmarks, choosers, weights={}, runs=runs, pair=pair)


def draw_chosen(
    plan: MembersPlan, site: str | Path, *, results: Places, rounds: int = 2, count: int = 20
) -> tuple[Path, Chosen]:
    """Draw what planned runs chose in their first rounds into a site's folder; returns the path and what it says.

    Args:
        results: the folder of records, which `site` may not lie in.
        rounds: how many, from the first choice on. count: images a round, the first that were chosen.
    Raises: DataMissing, CorruptFile where data, weights or choices are not those of the records; OutputError.
    """
    from limbeck.leaderboard.pictures.chosen_run import Pool
    from limbeck.leaderboard.pictures.panels_chosen import draw_chosen as draw

    check_apart(site, results)
    sample = plan.records[0]
    pool = Pool(sample)
    members = [
        Chooser(
            **identity(record),
            strategy=str(record.config["loop"]["strategy"]["type"]),
            rounds=pool.rounds(record, plan.weights[record.id], rounds, count),
        )
        for record in plan.records
    ]
    picture = draw(members, pool, f"{plan.group.name}: images of {sample.data.name} that were chosen, in order")
    return save_drawn(
        Chosen,
        plan,
        FOLDER,
        site,
        picture,
        data=sample.data.name,
        train_hash=sample.data.train_hash,
        classes=len(pool.classes),
        pool=len(pool),
        members=members,
    )


def find_chosen(group: Group, site: str | Path) -> Chosen | None:
    """What a site's folder has for a group; None where nothing was drawn.

    Raises: StalePicture when a file is not whole, or other records or weights would be drawn today.
    """
    return find_members(Chosen, FOLDER, group, site, choosers)
