"""`limbeck search`: students by DisWOT's score, without training; and how well that score ranks trained ones."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from limbeck.vision._search_correlation import Report
    from limbeck.vision._search_strategy import Assessor, Candidate, ScoringTask

STRATEGIES = ("evolution", "random", "all")


def search(
    config: Annotated[str, typer.Argument(help="A pair, for data and teacher: 'vision/search' or a .py file.")],
    space: Annotated[str, typer.Option(help="depth-resnet, or timm:PATTERN such as 'timm:resnet*t'.")] = "depth-resnet",
    strategy: Annotated[str, typer.Option(help="evolution, random or all.")] = "evolution",
    evaluations: Annotated[int, typer.Option(min=1, help="Candidates to score.")] = 100,
    max_params: Annotated[int | None, typer.Option(min=1, help="Budget: parameters of the student.")] = None,
    max_flops: Annotated[int | None, typer.Option(min=1, help="Budget: FLOPs of one sample, 2 a multiply-add.")] = None,
    seed: Annotated[int, typer.Option(help="Decides the batch, the drawn weights and the search.")] = 0,
    repeats: Annotated[int, typer.Option(min=1, help="Initialisations that a score is averaged over.")] = 1,
    batch_size: Annotated[int, typer.Option(min=2, help="Training images that candidates are scored on.")] = 64,
    threads: Annotated[int | None, typer.Option(min=1, help="Bound torch's threads.")] = None,
    top: Annotated[int, typer.Option(min=1, help="Candidates to print.")] = 10,
    out: Annotated[Path | None, typer.Option(help="Write everything to this JSON file.")] = None,
    against: Annotated[
        Path | None, typer.Option(help="Folder of records: score the students trained there, and correlate.")
    ] = None,
    method: Annotated[str, typer.Option(help="With --against: the method that trained them.")] = "KD",
    min_candidates: Annotated[int, typer.Option(min=3, help="With --against: refuse fewer trained students.")] = 16,
) -> None:
    """Rank students without training, by how alike they and the teacher are at random weights (DisWOT).

    Example: limbeck search vision/search --max-params 100000 && limbeck search vision/search --against results
    """
    from rich.console import Console

    from limbeck.engine.config import load_pair
    from limbeck.engine.cost import set_threads
    from limbeck.engine.weights import write_json
    from limbeck.errors import UnknownName

    if strategy not in STRATEGIES:
        raise UnknownName("strategy", strategy, STRATEGIES)
    set_threads(threads)
    pair = load_pair(config)
    facts: dict[str, Any] = dict(config=config, seed=seed, repeats=repeats, batch_size=batch_size)
    options = dict(batch_size=batch_size, seed=seed, repeats=repeats)
    if against is not None:
        report = _correlate(pair, against, method, min_candidates, max_params, options)
        _show_report(report, Console())
        found = report.to_json()
    else:
        candidates, assessor = _explore(pair, space, strategy, evaluations, max_params, max_flops, options)
        _show(candidates[:top], assessor, Console())
        facts |= dict(space=space, strategy=strategy, max_params=max_params, max_flops=max_flops)
        found = dict(
            unfit=[dict(model=assessor.space.model(g), reason=why) for g, why in assessor.unfit.items()],
            candidates=[c.row() for c in candidates],
        )
    if out is not None:
        write_json(out, facts | found)
        typer.echo(f"file  {out}")


def _task(pair: Any, options: dict[str, int]) -> ScoringTask:
    from limbeck.vision._search_strategy import scoring_task

    return scoring_task(pair, **options)


def _explore(
    pair: Any,
    space: str,
    strategy: Any,
    evaluations: int,
    max_params: int | None,
    max_flops: int | None,
    options: dict[str, int],
) -> tuple[list[Candidate], Assessor]:
    from rich.console import Console

    from limbeck.cli._progress import run_progress
    from limbeck.vision._search_space import make_space
    from limbeck.vision._search_strategy import Assessor, Limits, explore

    seed = options["seed"]
    made = make_space(space, pair.student)
    total = len(made.candidates()) if strategy == "all" else min(evaluations, len(made.candidates()))
    progress, report = run_progress(Console(stderr=True), f"search {made.name}")
    assessor = Assessor(made, _task(pair, options), Limits(max_params, max_flops), seed)
    assessor.on_scored = lambda candidate: report("search", len(assessor.scored), total)
    with progress:
        return explore(assessor, strategy, evaluations=evaluations, seed=seed), assessor


def _correlate(
    pair: Any, records: Path, method: str, minimum: int, max_params: int | None, options: dict[str, int]
) -> Report:
    from rich.console import Console

    from limbeck.cli._progress import run_progress
    from limbeck.vision._search_correlation import correlate, read_trained
    from limbeck.vision._search_strategy import assess_model

    trained = read_trained(records, pair, method=method, minimum=minimum)
    task = _task(pair, options)
    progress, report = run_progress(Console(stderr=True), "score the trained students")
    scored = []
    with progress:
        for index, one in enumerate(trained.candidates, 1):
            candidate = assess_model(task, one.model, seed=options["seed"])
            assert candidate is not None  # no limits were given
            scored.append(candidate)
            report("score", index, len(trained.candidates))
    return correlate(trained, scored, max_parameters=max_params)


# --- tables ---


def _show(candidates: list[Candidate], assessor: Assessor, console: Console) -> None:
    from rich.table import Table

    table = Table("rank", "student", "score", "relation", "semantic", "params", "FLOPs", box=None)
    table.columns[1].overflow = "fold"
    for column in table.columns[2:]:
        column.justify = "right"
    for rank, one in enumerate(candidates, 1):
        terms = (f"{v:.5f}" for v in (one.score.total, one.score.relation, one.score.semantic))
        table.add_row(str(rank), _escape(_short(one)), *terms, f"{one.parameters:,}", f"{one.flops:,}")
    console.print(table)
    said = f"{len(assessor.scored)} of {len(assessor.space.candidates())} candidates scored"
    if assessor.beyond:
        said += f", {len(assessor.beyond)} beyond the budget"
    if assessor.unfit:
        said += f", {len(assessor.unfit)} do not take this input"
    console.print(said, highlight=False)
    console.print("student = " + _escape(_pasted(candidates[0].model)), highlight=False, soft_wrap=True)


def _short(candidate: Candidate) -> str:
    return ", ".join(str(gene) for gene in candidate.genes)


def _pasted(model: dict[str, Any]) -> str:
    """As a pair config takes it."""
    return f"dict({', '.join(f'{key}={value!r}' for key, value in model.items())})"


def _escape(text: str) -> str:
    from rich.markup import escape

    return escape(text)


def _show_report(report: Report, console: Console) -> None:
    from rich.table import Table

    trained = report.trained
    table = Table("criterion", "Spearman ρ", "95 %", "p", "Kendall τ", "95 %", "p", box=None)
    for name, rho in report.spearman.items():
        tau = report.kendall[name]
        cells = [(f"{c.value:+.3f}", f"{c.low:+.2f} … {c.high:+.2f}", f"{c.p:.2g}") for c in (rho, tau)]
        table.add_row(name, *cells[0], *cells[1])
    console.print(
        f"{len(trained.candidates)} students trained by {trained.method}, {trained.metric} the mean of seeds "
        f"{', '.join(map(str, trained.seeds))}",
        highlight=False,
    )
    if trained.incomplete:
        console.print(f"left out, a seed is missing: {_escape(', '.join(trained.incomplete))}", highlight=False)
    console.print(table)
    names = [n for n in report.picks[0].values if n != "random"]
    choices = Table("at most", "of", "best", "random", *names, title=f"{trained.metric} of the choice", box=None)
    for pick in report.picks:
        cells = [f"{pick.values[n]:.2f}" for n in ("random", *names)]
        choices.add_row(f"{pick.budget:,} params", str(pick.count), f"{pick.best:.2f}", *cells)
    console.print(choices)
