"""The progress bar of records that are read for the first time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def reading() -> Iterator[Callable[[int, int], None]]:
    """Give the `report` of `load_results`; the bar shows on a terminal's error stream once there is much to read."""
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bars:
        tasks = []

        def report(done: int, total: int) -> None:
            if not tasks:
                tasks.append(bars.add_task("reading new records", total=total))
            bars.update(tasks[0], completed=done, total=total)  # each folder has its own

        yield report
