"""Commands of `limbeck leaderboard` on generated images: samples, trajectories, hand-overs, controls, for the page."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Annotated, Any

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

    draw = partial(draw_hand_over, results=results, images=images)
    _measure(planned(plan_hand_over, benchmark, results, runs, pair), draw, hand_over_markdown, out)
    say_shown(results, out)


def controls(
    benchmark: str,
    results: ResultsFolders = RESULTS,
    runs: Runs = None,
    out: SiteFolder = SITE,
    attribute: Annotated[str, typer.Option(help="What sliders give more of: ink_mass, width or height.")] = "ink_mass",
    steps: Annotated[int, typer.Option(min=1, help="Updates of a slider's training.")] = 300,
    images: Annotated[int, typer.Option(min=6, help="Images that every slope is of.")] = 100,
    rank: Annotated[int, typer.Option(min=1, help="Of the low-rank adapter that a slider is.")] = 4,
    pair: OnlyPair = None,
) -> None:
    """Train sliders on teacher and students and measure what each does on the other; print the table, for the page.

    The figures lie beside the picture as JSON: the teacher's slider on the students of all seeds, and the slider of
    each method's lowest seed on the teacher. Plain and BOOT are left out.

    Example: limbeck leaderboard controls diffusion --attribute width --runs out/diffusion/runs
    """
    from limbeck.leaderboard.pictures.controls import check_attribute, draw_controls, plan_controls
    from limbeck.leaderboard.site.controls import controls_markdown

    check_attribute(attribute)
    draw = partial(draw_controls, results=results, attribute=attribute, steps=steps, images=images, rank=rank)
    _measure(planned(plan_controls, benchmark, results, runs, pair), draw, controls_markdown, out)
    say_shown(results, out)


def _measure(plans: Iterable[Any], draw: Callable[..., Any], table: Callable[[Any], str], out: Path) -> None:
    """Measure each plan under a bar, and print its table and where its figures lie."""
    with progress(True) as bars:
        for plan in plans:
            bar = bars.add_task(plan.group.name, total=None)
            path, found = draw(plan, out, report=partial(advance, bars, bar))
            said = f"{table(found)}\n\n{path.with_suffix('.json')}"
            bars.console.print(said, markup=False, highlight=False)
