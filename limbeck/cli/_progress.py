"""The progress display of a suite: what runs, how far it is, and when the whole will be done."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from limbeck.engine.events import Event


class SuiteDisplay:
    """Bars on a terminal; one line a finished run elsewhere."""

    def __init__(self, console: Console, title: str, total: int) -> None:
        self.console = console
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=28),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(elapsed_when_finished=False),
            console=console,
            disable=not console.is_terminal,
        )
        self.title, self.total = title, total
        self.runs: dict[str, TaskID] = {}
        self.done = self.skipped = 0
        self.suite = self.progress.add_task(f"[bold]suite {escape(title)}[/]", total=total)

    def __call__(self, event: Event) -> None:
        """Show one event."""
        getattr(self, f"_{event.kind}")(event)

    def _skip(self, event: Event) -> None:
        self.done += 1
        self.skipped += 1
        # a skipped run took no time: it counts towards neither bar nor estimate
        self.progress.update(self.suite, total=self.total - self.skipped)

    def _start(self, event: Event) -> None:
        self.runs[event.id] = self.progress.add_task(f"  {escape(event.id)}", total=None)

    def _step(self, event: Event) -> None:
        if event.id in self.runs:
            self.progress.update(self.runs[event.id], completed=event.done, total=event.total)

    def _finish(self, event: Event) -> None:
        self._close(event, f"[green]✓[/] {escape(event.id)}  {escape(event.text)}")

    def _fail(self, event: Event) -> None:
        self._close(event, f"[red]✗[/] {escape(event.id)}  {escape(event.text)}")

    def _close(self, event: Event, line: str) -> None:
        self.done += 1
        if event.id in self.runs:
            self.progress.remove_task(self.runs.pop(event.id))
        self.progress.advance(self.suite)
        self.console.print(f"[dim]{self.done:3d}/{self.total}[/] {line}", highlight=False)


@contextmanager
def suite_display(console: Console, title: str, total: int) -> Iterator[SuiteDisplay]:
    """Show a suite's progress while the block runs."""
    display = SuiteDisplay(console, title, total)
    with display.progress:
        yield display


@contextmanager
def download_progress() -> Iterator[Any]:
    """Bars on a terminal, one a file, while the block runs; gives what moves them: (name, bytes, bytes in all)."""
    console = Console(stderr=True)
    progress = Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=28),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
    )
    tasks: dict[str, TaskID] = {}

    def report(name: str, done: int, total: int | None) -> None:
        if name not in tasks:
            tasks[name] = progress.add_task(escape(name.rpartition("/")[2] or name), total=total)
        progress.update(tasks[name], completed=done, total=total)

    with progress:
        yield report


def run_progress(console: Console, title: str) -> tuple[Progress, Any]:
    """A bar for one run and the callback that moves it."""
    progress = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
    )
    task = progress.add_task(title, total=None)

    def report(stage: str, done: int, total: int) -> None:
        progress.update(task, completed=done, total=total)

    return progress, report
