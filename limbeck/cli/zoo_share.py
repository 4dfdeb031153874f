"""`limbeck zoo push`, `metafile` and `public`: students for others, and others' students."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from limbeck.zoo.public import PublicStudent

ResultsOption = Annotated[Path, typer.Option(help="Folder of records that has the student's.")]


def push(
    name: Annotated[str, typer.Argument(help="A student: see `limbeck zoo list`.")],
    repo: Annotated[str, typer.Argument(help="OWNER/NAME on the Hugging Face hub.")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be written; send nothing.")] = False,
    private: Annotated[bool, typer.Option("--private", help="Make the repository private, if it is new.")] = False,
    revision: Annotated[str | None, typer.Option(help="Branch; made if it is not there.")] = None,
    results: ResultsOption = Path("results"),
    dataset: Annotated[
        str | None, typer.Option(help="OWNER/NAME of the benchmark's data set on the hub, for .eval_results.")
    ] = None,
    task_id: Annotated[str | None, typer.Option(help="The task in that data set's eval.yaml.")] = None,
    teacher_repo: Annotated[str | None, typer.Option(help="OWNER/NAME of the teacher on the hub.")] = None,
) -> None:
    """Push a student to the Hugging Face hub: model card, card, weights, metafile and record, in one commit.

    The token is HF_TOKEN, or what `hf auth login` stored.

    Example: limbeck zoo push resnet8w4.digits_kd OWNER/resnet8w4.digits_kd --dry-run
    """
    from limbeck.zoo.push import push_files, push_student

    options: dict[str, Any] = dict(results=results, dataset=dataset, task_id=task_id, teacher_repo=teacher_repo)
    if dry_run:
        files, last = push_files(name, repo, revision=revision, **options), "nothing was sent"
    else:
        from rich.console import Console

        with Console(stderr=True).status(f"pushing {name} to {repo}"):
            done = push_student(name, repo, private=private, revision=revision, **options)
        files, last = done.files, f'{done.url}\nlimbeck.load_student("{done.reference}")'
    for file in files:
        typer.echo(f"{file.sha256}  {file.size:>10,}  {file.path}")
    typer.echo(last)


def metafile(
    names: Annotated[list[str] | None, typer.Argument(help="Students; all of them where none is named.")] = None,
    out: Annotated[Path, typer.Option(help="The file to write.")] = Path("model-index.yml"),
    results: ResultsOption = Path("results"),
    repo: Annotated[
        str | None, typer.Option(help="OWNER/NAME on the hub that has the weights; default: the package.")
    ] = None,
) -> None:
    """Write an OpenMMLab metafile (model-index.yml) of students, as `mim search` reads it.

    Epochs, batch sizes and papers are told where the records are there.

    Example: limbeck zoo metafile --out model-index.yml
    """
    from limbeck.engine.record import read_record, record_path
    from limbeck.zoo.index import find, list_students
    from limbeck.zoo.metafile import render_metafile, write_metafile

    cards = [find(name) for name in names] if names else list_students()
    paths = {card.record: record_path(results, card.record) for card in cards}
    records = {identity: read_record(path) for identity, path in paths.items() if path.is_file()}
    write_metafile(out, render_metafile(cards, records=records, repo=repo))
    typer.echo(f"{out}: {len(cards)} students, {len(records)} with their records")


def public(
    name: Annotated[str | None, typer.Argument(help="One of them: how to load it.")] = None,
    task: Annotated[str | None, typer.Option(help="Only this task: image-classification, text-to-image, …")] = None,
    library: Annotated[str | None, typer.Option(help="Only this library: timm, open_clip, diffusers, …")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List publicly known distilled students of others, or say how to load one; they are not Limbeck's.

    Example: limbeck zoo public --library timm
    """
    from limbeck.zoo.public import find_public, list_public

    if name is not None:
        entry = find_public(name)
        if json:
            _print_json(_plain(entry))
        else:
            _show(entry)
        return
    entries = list_public(task, library)
    if json:
        _print_json([_plain(entry) for entry in entries])
        return
    _table(entries)


def _table(entries: list[PublicStudent]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, caption="not Limbeck's: how to load one: limbeck zoo public NAME", caption_justify="left")
    table.add_column("name", no_wrap=True)
    for title in ("library", "task", "teacher", "licence", "arXiv"):
        table.add_column(title, no_wrap=True)
    for entry in entries:
        table.add_row(
            entry.name, entry.library, entry.task, entry.teacher or "–", entry.licence or "–", entry.paper or "–"
        )
    console = Console()
    console.width = max(console.width, console.measure(table, options=console.options.update(max_width=400)).maximum)
    console.print(table)


def _show(entry: PublicStudent) -> None:
    facts = dict(
        name=entry.name,
        task=entry.task,
        library=entry.library,
        teacher=entry.teacher,
        method=entry.method,
        licence=entry.licence,
        paper=entry.paper and f"https://arxiv.org/abs/{entry.paper}",
    )
    sources: dict[str, str] = {**entry.sources}
    typer.echo("not Limbeck's; Limbeck has measured nothing of it")
    for key, value in facts.items():
        source = sources.get(key)
        typer.echo(f"{key:8} {value or 'not found out'}{f'  ({source})' if source else ''}")
    if entry.install:
        typer.echo(f"install  {entry.install}")
    typer.echo(f"\n{entry.code}")


def _plain(entry: PublicStudent) -> dict[str, Any]:
    return entry.model_dump(mode="json", by_alias=True) | dict(code=entry.code)


def _print_json(value: Any) -> None:
    from limbeck.cli._zoo_predict import print_json

    print_json(value)
