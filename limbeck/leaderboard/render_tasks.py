"""Comparisons over several pairs and Pareto fronts as text for a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from limbeck.engine.config import PLAIN, TEACHER
from limbeck.leaderboard.across import Across
from limbeck.leaderboard.compare_task import TaskComparison, places_of
from limbeck.leaderboard.figures import BLANK, count, grid, interval, number, probability
from limbeck.leaderboard.pareto import Pareto
from limbeck.leaderboard.table import decimals, title

if TYPE_CHECKING:
    from rich.console import Console

FEW = 10  # pairs
_LISTED = 50  # pairs that are left out and named


def render_across(found: Across, console: Console) -> None:
    """Print average ranks and gains, the tests, and who is not told apart."""
    from rich.text import Text

    pairs = len(found.pairs)
    arrow = "↑" if found.higher_is_better else "↓"
    console.print()
    heading = f"{len(found.methods)} methods over {pairs} pairs, {title(found.metric)} {arrow}"
    console.print(Text(heading, style="bold"))
    lines = grid("mean rank", "method", "gain over plain", "better than plain", words=(1,))
    places = 2 if found.higher_is_better else decimals(g for m in found.methods for g in m.gains)
    for one in found.methods:
        plain = one.method.lower() == PLAIN
        gain = BLANK if plain else interval(one.gain, places, sign=True)
        lines.add_row(number(one.rank, 2), Text(one.method), gain, BLANK if plain else f"{one.ahead} of {pairs}")
    console.print(lines)
    console.print()
    for sentence in across_sentences(found):
        console.print(Text(sentence))
    for sentence in across_notes(found):
        console.print(Text(sentence, style="dim"))


def across_sentences(found: Across) -> list[str]:
    """What the tests say, in words; for terminal and page."""
    if found.p is None or found.statistic is None:
        return ["Friedman's test needs three methods, the plain student included; see compare A B --task."]
    test = f"Friedman's test over {len(found.pairs)} pairs: χ² = {number(found.statistic, 2)}, p "
    shown = probability(found.p)
    test += f"{'' if shown.startswith('<') else '= '}{shown.replace('<', '< ')}"
    if not found.told_apart:
        return [f"{test}: the methods are not told apart."]
    said = [f"{test}: the methods are not all equally good."]
    if found.critical_difference is not None:
        said.append(f"Nemenyi's critical difference of mean ranks: {number(found.critical_difference, 2)}.")
    said += [f"Not told apart: {', '.join(names)}." for names in found.cliques]
    return said if found.cliques else [*said, "Each two methods are told apart."]


def across_notes(found: Across) -> list[str]:
    """How the comparison was made, what was left out, and how far to trust it."""
    said = []
    if not found.chosen:
        said.append(
            "Methods: those that together fill the largest number of methods × pairs; limbeck leaderboard across TASK "
            "--method names others."
        )
    said.append(
        "Gain: mean over pairs ± half of the 95 % t interval over pairs; a pair's is that of its table. Ranks are of "
        "the gains within a pair. Pairs that share data or a teacher are not independent, so p is too small then."
    )
    if len(found.pairs) < FEW:
        said.append(
            f"With {len(found.pairs)} pairs the tests are weak: methods that are not told apart may still differ."
        )
    if found.left_out:
        rest = "; ".join(f"{name} {reason}" for name, reason in found.left_out[:_LISTED])
        more = len(found.left_out) - _LISTED
        said.append(f"Left out: {rest}{f'; and {more} more' if more > 0 else ''}.")
    return said


def render_pareto(found: Pareto, console: Console) -> None:
    """Print the points by rising cost; those on the front are marked."""
    from rich.text import Text

    heading = {"latency": "latency ms", "flops": "FLOPs", "params": "params"}[found.cost]
    arrow = "↑" if found.higher_is_better else "↓"
    console.print()
    console.print(Text(f"{', '.join(found.tables)}: {title(found.metric)} {arrow} against {heading}", style="bold"))
    lines = grid("front", "method", "pair", heading, f"{title(found.metric)} {arrow}", words=(0, 1, 2))
    places = decimals(p.value.mean for p in found.points)
    for one in found.points:
        cost = number(one.cost, 2) if found.cost == "latency" else count(one.cost)
        name = Text(one.method + "".join(f" ({f})" for f in one.flags))
        style = "bold" if one.on_front else "dim" if one.flags or one.role == TEACHER else ""
        mark = "●" if one.on_front else ""
        lines.add_row(mark, name, Text(one.pair), cost, interval(one.value, places), style=style)
    console.print(lines)
    console.print()
    for sentence in pareto_notes(found):
        console.print(Text(sentence, style="dim"))


def pareto_notes(found: Pareto) -> list[str]:
    """What the front means, and what it leaves out; for terminal and page."""
    said = [
        "●: no other row is at least as good in both and better in one. Means are compared; an interval may hold "
        "another order."
    ]
    if found.cost == "latency" and found.machines > 1:
        said.append(f"The runs were made on {found.machines} kinds of machine: latencies are no fair comparison.")
    if found.without:
        said.append(f"Not measured: {', '.join(found.without)}.")
    return said


def render_task_comparison(found: TaskComparison, console: Console) -> None:
    """Print the difference of each pair, then what it comes to."""
    from rich.text import Text

    console.print()
    arrow = "↑" if found.higher_is_better else "↓"
    heading = f"{found.a} against {found.b} over {len(found.pairs)} pairs, {title(found.metric)} {arrow}"
    console.print(Text(heading, style="bold"))
    lines = grid("pair", "seeds", f"{found.a} better by", "p", "verdict", words=(0, 4))
    places = places_of(found)
    for one in found.pairs:
        difference = interval(one.paired.difference, places, sign=True)
        seeds = str(len(one.paired.seeds))
        lines.add_row(Text(one.name), seeds, difference, probability(one.p), one.verdict)
    console.print(lines)
    console.print()
    console.print(Text(found.summary))
    console.print(Text(found.conclusion, style="bold"))
    console.print(
        Text(
            "p: two-sided paired t-test over shared seeds, Holm-adjusted over the pairs. Each pair counts once; pairs "
            "that share data or a teacher are not independent, so the p over pairs is too small then.",
            style="dim",
        )
    )
    if found.left_out:
        rest = "; ".join(f"{name} {reason}" for name, reason in found.left_out)
        console.print(Text(f"Left out: {rest}.", style="dim"))
