"""`limbeck zoo download`, `verify` and `profile`: get students from anywhere, check them, measure them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from limbeck.cli._zoo_predict import print_json
from limbeck.errors import ConfigError

JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]
# typer reads help texts as rich's markup, so no square brackets here
ReferenceHelp = "A name, hf://owner/name or hf://owner/name@REVISION/STUDENT, https://…/NAME.json, or a path."


def download(
    names: Annotated[list[str], typer.Argument(help=ReferenceHelp)],
    to: Annotated[
        Path | None, typer.Option(help="Also write cards/ and weights/ into this folder, for LIMBECK_ZOO.")
    ] = None,
    revision: Annotated[
        str | None, typer.Option(help="Of a Hugging Face repository; else first digits of the weights' sha256.")
    ] = None,
    refresh: Annotated[bool, typer.Option("--refresh", help="Ask addresses again that the cache knows.")] = False,
    json: JsonOption = False,
) -> None:
    """Download students, several at a time, and check them; a download that broke off is gone on with.

    Example: limbeck zoo download resnet8w4.digits_kd hf://owner/name --to my-zoo
    """
    from dataclasses import asdict

    from limbeck.cli._progress import download_progress
    from limbeck.zoo.download import download as fetch

    with download_progress() as report:
        done = fetch(names, to, revision=revision, refresh=refresh, progress=report)
    if json:
        print_json([asdict(one) for one in done])
        return
    for one in done:
        typer.echo(f"{one.name}\t{one.path}\t{one.size / 1e3:,.0f} kB\tsha256 {one.sha256}")


def verify(
    names: Annotated[list[str] | None, typer.Argument(help=f"{ReferenceHelp} Default: the whole zoo.")] = None,
    evaluate: Annotated[
        bool, typer.Option("--evaluate", help="Also compute the card's figures again on the test split.")
    ] = False,
    results: Annotated[Path, typer.Option(help="Folder of records, for --evaluate.")] = Path("results"),
    json: JsonOption = False,
) -> None:
    """Check students: the hash of the file, its tensors, finite outputs on test samples; exit 1 when one fails.

    Example: limbeck zoo verify resnet8w4.digits_kd --evaluate
    """
    from rich.console import Console
    from rich.progress import track

    from limbeck.leaderboard.verify import card_judge
    from limbeck.zoo import list_students
    from limbeck.zoo.verify import verify_student

    wanted = names or [card.name for card in list_students()]
    judge = card_judge(results) if evaluate else None
    console = Console(stderr=True)
    shown = track(wanted, "verify", console=console, disable=not console.is_terminal or len(wanted) == 1)
    done = []
    for name in shown:
        done.append(verify_student(name, judge=judge))
        if not json:
            typer.echo(f"{done[-1].name}\t{'' if done[-1].holds else 'FAILED: '}{done[-1].text}")
    if json:
        print_json([check.to_dict() for check in done])
    if not all(check.holds for check in done):
        raise typer.Exit(1)


def profile(
    name: Annotated[str, typer.Argument(help=ReferenceHelp)],
    runs: Annotated[int, typer.Option(help="Forwards that are timed.")] = 100,
    warmup: Annotated[int, typer.Option(help="Forwards before these.")] = 10,
    device: Annotated[str, typer.Option(help="cpu, cuda or auto.")] = "cpu",
    threads: Annotated[int | None, typer.Option(help="Threads of torch; default as torch has it.")] = None,
    json: JsonOption = False,
) -> None:
    """Measure a student on this machine: latency of one sample, memory, FLOPs, parameters.

    Example: limbeck zoo profile resnet8w4.digits_kd --threads 1 --json
    """
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from limbeck.zoo.profile import profile_student

    found = profile_student(name, runs=runs, warmup=warmup, device=device, threads=threads)
    if json:
        print_json(found.to_dict())
        return
    table = Table(box=None, show_header=False)
    for key, value in _measured(found).items():
        table.add_row(f"[bold]{key}[/]", Text(value))
    Console().print(table)


def _measured(found: Any) -> dict[str, str]:
    stated = "not measured" if found.card_ms is None else f"{found.card_ms:.3g} ms (median) on {found.card_device}"
    return {
        "name": found.name,
        "latency": f"p50 {found.p50_ms:.3g} ms, p95 {found.p95_ms:.3g} ms of {found.runs} runs, {found.sample} sample",
        "peak memory": f"{found.peak_memory_mb:.0f} MB, of the GPU or else of the whole process",
        "FLOPs": "not counted" if found.flops is None else f"{found.flops:,}",
        "parameters": f"{found.parameters:,}",
        "device": f"{found.device}, {found.threads} thread{'s' if found.threads != 1 else ''}, torch {found.torch}",
        "card": stated,
    }


def add_commands(app: typer.Typer) -> None:
    """Put these into `limbeck zoo`."""
    for command in (download, verify, profile):
        app.command()(command)


def read_stdin(paths: list[Path] | None) -> list[Path] | None:
    """Paths, with '-' replaced by those that standard input has, one a line.

    Raises: ConfigError when it has none.
    """
    import sys

    if not paths or Path("-") not in paths:
        return paths
    lines = [Path(line) for line in sys.stdin.read().splitlines() if line.strip()]  # names may end in spaces
    if not lines:
        raise ConfigError("'-' reads paths from standard input, one a line, and there are none; pipe some in")
    return [path for given in paths for path in (lines if given == Path("-") else [given])]
