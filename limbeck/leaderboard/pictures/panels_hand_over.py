"""The picture of hand-overs: quality against diversity, and both against network calls, a line a method."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean

from PIL import Image, ImageDraw, ImageFont

from limbeck.leaderboard.pictures.hand_overs import HandedOver, Point
from limbeck.leaderboard.pictures.panel_layout import GAP, INK, LETTERS, PAPER, stacked
from limbeck.leaderboard.pictures.plots import Series, beside, key, plot
from limbeck.leaderboard.stats import Estimate, estimate
from limbeck.leaderboard.table import title

DIVERSITY = ("diversity_share", "recall")  # the first that was measured is drawn


@dataclass(frozen=True)
class Mean:
    """One hand-over step of a method over its seeds; figures by name."""

    at: int
    base_steps: int
    calls: float
    figures: dict[str, Estimate]


def means_of(members: Iterable[HandedOver]) -> dict[tuple[str, int], list[Mean]]:
    """Of each method and number of the teacher's steps, the points in order; the student alone is in all of them."""
    runs: dict[str, list[HandedOver]] = {}
    for one in members:
        runs.setdefault(one.method, []).append(one)
    found: dict[tuple[str, int], list[Mean]] = {}
    for method, mine in runs.items():
        grids: dict[int, dict[int, list[Point]]] = {}
        for one in mine:
            for point in one.points:
                grids.setdefault(point.base_steps, {}).setdefault(point.at, []).append(point)
        alone = [point for one in mine for point in one.points if point.at == 0]
        for base_steps, steps in grids.items():
            everywhere = {**steps, 0: alone}
            found[method, base_steps] = [_mean(at, base_steps, everywhere[at]) for at in sorted(everywhere)]
    return found


def _mean(at: int, base_steps: int, points: Sequence[Point]) -> Mean:
    names = [name for name in points[0].metrics if all(name in p.metrics for p in points)]
    figures = {name: estimate([p.metrics[name] for p in points]) for name in names}
    return Mean(at, base_steps, fmean(p.calls for p in points), figures)


def draw_hand_over(members: Sequence[HandedOver], primary: str, heading: str) -> Image.Image:
    """A row of plots for each number of the teacher's steps; numbers beside points are hand-over steps."""
    found = means_of(members)
    diversity = next(name for name in DIVERSITY if all(name in m.figures for means in found.values() for m in means))
    rows = []
    for base_steps in dict.fromkeys(base_steps for _, base_steps in found):
        lines = {method: means for (method, steps), means in found.items() if steps == base_steps}
        rows.append(_text(f"The teacher walks {base_steps} steps from noise to image"))
        rows.append(beside(_plots(lines, primary, diversity)))
    width = max(row.width for row in rows)
    return stacked([_text(heading), *rows, key(list(dict.fromkeys(method for method, _ in found)), width)])


def _plots(lines: dict[str, list[Mean]], primary: str, diversity: str) -> list[Image.Image]:
    def series(x: str, y: str) -> list[Series]:
        def values(means: list[Mean], name: str) -> list[float]:
            return [m.calls if name == "calls" else m.figures[name].mean for m in means]

        return [
            Series(method, values(means, x), values(means, y), [str(m.at) for m in means])
            for method, means in lines.items()
        ]

    names = {primary: title(primary), diversity: title(diversity), "calls": "network calls an image"}
    wanted = ((diversity, primary), ("calls", primary), ("calls", diversity))
    return [
        plot(
            f"{names[y]} against {names[x]}",
            series(x, y),
            (names[x], names[y]),
            log=(x == "calls", y == primary),
        )
        for x, y in wanted
    ]


def _text(text: str) -> Image.Image:
    font = ImageFont.load_default(LETTERS)
    page = Image.new("RGB", (GAP + round(font.getlength(text)) + GAP, LETTERS + 2 * GAP), PAPER)
    ImageDraw.Draw(page).text((GAP, GAP), text, fill=INK, font=font)
    return page
