"""The commands of `limbeck leaderboard` on generated images: samples, trajectories and hand-overs, for the page."""

from __future__ import annotations

from functools import partial
from typing import Annotated

import typer

from limbeck.cli.leaderboard_pictures import (
    RESULTS,
    SITE,
    OnlyPair,
    ResultsFolders,
    Runs,
    SiteFolder,
    advance,
    planned,
    progress,
    say_shown,
)


def samples(
    benchmark: str,
    results: ResultsFolders = RESULTS,
    runs: Runs = None,
    out: SiteFolder = SITE,
    rows: Annotated[int, typer.Option(min=1, help="Images of each class.")] = 3,
    pair: OnlyPair = None,
) -> None:
    """Draw what a diffusion model and its students make of the same noise, beside real images, for the page.

    Example: limbeck leaderboard samples diffusion --results out/diffusion/records --runs out/diffusion/runs
    """
    from limbeck.leaderboard.pictures.samples import draw_samples, plan_samples

    for plan in planned(plan_samples, benchmark, results, runs, pair):
        path, _ = draw_samples(plan, out, results=results, rows=rows)
        typer.echo(str(path))
    say_shown(results, out)


def trajectories(
    benchmark: str,
    results: ResultsFolders = RESULTS,
    runs: Runs = None,
    out: SiteFolder = SITE,
    count: Annotated[int, typer.Option(min=1, help="Images that are drawn.")] = 2,
    images: Annotated[int, typer.Option(min=2, help="Images that the curves are over; two of a class or more.")] = 100,
    pair: OnlyPair = None,
) -> None:
    """Draw what teacher and students of several steps believe the final image to be at each step, for the page.

    Example: limbeck leaderboard trajectories diffusion --results out/diffusion/records --runs out/diffusion/runs
    """
    from limbeck.leaderboard.pictures.trajectories import draw_trajectories, plan_trajectories

    for plan in planned(plan_trajectories, benchmark, results, runs, pair):
        path, _ = draw_trajectories(plan, out, results=results, count=count, images=images)
        typer.echo(str(path))
    say_shown(results, out)


def hand_over(
    benchmark: str,
    results: ResultsFolders = RESULTS,
    runs: Runs = None,
    out: SiteFolder = SITE,
    images: Annotated[
        int | None, typer.Option(min=6, help="Images that every figure is of; all test requests where not given.")
    ] = None,
    pair: OnlyPair = None,
) -> None:
    """Measure students whose first steps the teacher makes, at every hand-over step; print the tables, for the page.

    The figures lie beside the picture as JSON; they are of all seeds of every student of several steps.

    Example: limbeck leaderboard hand-over diffusion --results out/diffusion/records --runs out/diffusion/runs
    """
    from limbeck.leaderboard.pictures.hand_overs import draw_hand_over, plan_hand_over
    from limbeck.leaderboard.site.hand_over import hand_over_markdown

    with progress(True) as bars:
        for plan in planned(plan_hand_over, benchmark, results, runs, pair):
            bar = bars.add_task(plan.group.name, total=None)
            path, found = draw_hand_over(plan, out, results=results, images=images, report=partial(advance, bars, bar))
            said = f"{hand_over_markdown(found)}\n\n{path.with_suffix('.json')}"
            bars.console.print(said, markup=False, highlight=False)
    say_shown(results, out)
