"""Options that the commands which make runs share."""

from __future__ import annotations

from typing import Annotated

import typer

JobsOption = Annotated[int, typer.Option("--jobs", "-j", min=0, help="Runs at a time; 0 is one a core.")]
ThreadsOption = Annotated[int, typer.Option(min=1, help="Threads of each run; last bits of figures depend on it.")]
DeviceOption = Annotated[str, typer.Option(help="cpu, cuda or auto.")]
RayOption = Annotated[str | None, typer.Option("--ray", help="Address of a Ray cluster that shares --out, or 'local'.")]
