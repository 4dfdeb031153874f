"""What is shown of measured hand-overs: a picture's address and caption, and a table, for the page and as Markdown."""

from __future__ import annotations

from typing import Any

from limbeck.leaderboard.figures import BLANK, interval
from limbeck.leaderboard.pictures.hand_overs import FOLDER, HandOver
from limbeck.leaderboard.pictures.panels_hand_over import Mean, means_of
from limbeck.leaderboard.pictures.plans import picture_view
from limbeck.leaderboard.site.measured import measured_markdown
from limbeck.leaderboard.table import HIGHER, decimals, title

COLUMNS = ("precision", "recall", "coverage", "diversity_share", "label_agreement")  # beside the primary metric


def hand_over_view(found: HandOver) -> dict[str, Any]:
    """Everything that the template shows of one: the picture's view, with `columns` and `rows` of the table."""
    columns, rows = hand_over_table(found)
    alt = f"Plots of {title(found.primary_metric)} and diversity of {found.data} by hand-over step; the table has them."
    text = f"{hand_over_note(found)} A number beside a point is its hand-over step."
    return picture_view(found, FOLDER, alt, text) | dict(columns=columns, rows=rows)


def hand_over_note(found: HandOver) -> str:
    """How the figures are made."""
    guidance = ", ".join(dict.fromkeys(f"{t.guidance:g}" for t in found.teachers))
    one = "" if len(found.teachers) > 1 else "; the teacher is one run, so it has no interval of its own"
    return (
        "The teacher makes the student's first steps, the student the rest, without training (diversity distillation, "
        "arXiv 2503.10637): at 0 it is the student alone, at its last step the teacher alone, with guidance "
        f"{guidance}. With as many steps as the student the teacher walks the student's times; with more, its own. "
        f"Measured on {found.images} requests of the test split of {found.data}, mean ± half of the 95 % t "
        f"interval over the students' seeds{one}."
    )


def hand_over_table(found: HandOver) -> tuple[list[str], list[list[str]]]:
    """Headings, and the rows of all methods: one a hand-over step, the teacher alone once for each number of steps."""
    means = means_of(found.members)
    every = [m for points in means.values() for m in points]
    names = [found.primary_metric, *(n for n in COLUMNS if all(n in m.figures for m in every))]
    places = {name: decimals(m.figures[name].mean for m in every) for name in names}
    arrow = {name: " ↑" if name in HIGHER else "" for name in names}
    arrow[found.primary_metric] = " ↑" if found.higher_is_better else " ↓"
    columns = ["method", "teacher's steps", "hand-over at", "calls", *(f"{title(n)}{arrow[n]}" for n in names)]
    rows, alone = [], {}
    for (method, base_steps), points in means.items():
        for m in points:
            cells = [f"{m.calls:g}", *(interval(m.figures[n], places[n]) for n in names)]
            if m.at == points[-1].at:
                alone.setdefault(base_steps, ["teacher alone", str(base_steps), BLANK, *_plain(m, names, places)])
            elif m.at or base_steps == points[-1].at:  # the student alone stands once
                rows.append([method, str(base_steps) if m.at else BLANK, str(m.at), *cells])
    return columns, [*alone.values(), *rows]


def _plain(m: Mean, names: list[str], places: dict[str, int]) -> list[str]:
    """Figures of one run that several students have in common: no interval."""
    return [f"{m.calls:g}", *(f"{m.figures[n].mean:.{places[n]}f}" for n in names)]


def hand_over_markdown(found: HandOver) -> str:
    """The table and its note as Markdown."""
    columns, rows = hand_over_table(found)
    return measured_markdown(found, columns, rows, hand_over_note(found), ("method",))
