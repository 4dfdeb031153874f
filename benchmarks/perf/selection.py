"""Time and memory of choosing images from a file of probabilities in half precision.

    python -m benchmarks.perf.selection                                       some seconds
    python -m benchmarks.perf.selection --images 1000000 --classes 1000 --labelled 1000 --picks 10
                                                                              the largest size that is promised: 8 GB

Prints one JSON line, and ends with status 1 when the peak is above `--limit-gb`. The peak is of the whole process and
counts the file's pages that the system keeps in memory, at most `file_mb`, which it takes back when others need them.
benchmarks/perf/selection.json has what was found at the largest size.
"""

from __future__ import annotations

import json
import os
import resource
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import numpy as np
import torch
import typer
from rich.console import Console

from limbeck.cli._progress import run_progress
from limbeck.engine.cost import PeakMemory, cpu_name
from limbeck.engine.registry import STRATEGIES
from limbeck.engine.selection import Pool, Strategy
from limbeck.engine.weights import write_json

ROWS = 1000
Report = Any  # of `run_progress`


def table(
    path: Path, images: int, width: int, sharpness: float | None, report: Report = None, seed: int = 0
) -> np.ndarray:
    """Probabilities of a student that is `sharpness` nats sure of one class a row; None: normal features."""
    made = np.lib.format.open_memmap(path, "w+", np.float16, (images, width))
    rng = np.random.default_rng(seed)
    for start in range(0, images, ROWS):
        rows = torch.from_numpy(rng.standard_normal((min(ROWS, images - start), width), np.float32))
        if sharpness is not None:
            rows[torch.arange(len(rows)), torch.from_numpy(rng.integers(0, width, len(rows)))] += sharpness
            rows = rows.softmax(1)
        made[start : start + len(rows)] = rows.numpy()
        if report is not None:
            report("table", start + len(rows), images)
    made.flush()
    return np.load(path, mmap_mode="r")


@contextmanager
def memory_limited(gigabytes: float) -> Iterator[None]:
    """The system refuses private memory beyond the limit, so that a copy of the pool fails here at once."""
    before = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (int(gigabytes * 1e9), before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, before)


def chosen_from(
    tables: dict[str, np.ndarray], strategy: Strategy, labelled: int, picks: int, report: Report
) -> dict[str, Any]:
    """Choose, and say how long it took and how much memory; the first `labelled` images are labelled."""
    images = len(next(iter(tables.values())))
    ids, labels = np.arange(images), np.zeros(labelled, np.int64)
    clock = [time.perf_counter()]
    peak = PeakMemory(torch.device("cpu"))
    pool = Pool(**tables, labelled=ids[:labelled], labels=labels, unlabelled=ids[labelled:])
    clock.append(time.perf_counter())

    def done(count: int, total: int, unit: str) -> None:
        report(unit, count, total)
        if unit == "picks":
            clock.append(time.perf_counter())

    strategy.choose(pool, picks, seed=0, progress=done)
    gaps = np.diff(clock)
    found: dict[str, Any] = dict(images=images, labelled=labelled, picks=picks)
    found |= {f"columns_of_{kind}": int(values.shape[1]) for kind, values in tables.items()}
    found |= dict(seconds_of_checks=gaps[0], seconds_to_first_pick=gaps[1], seconds_in_all=clock[-1] - clock[0])
    # the last pick is the farthest image as it stands, which takes no pass
    found |= dict(seconds_a_pick=median(gaps[2:-1]), peak_mb=peak.megabytes())
    return found | dict(file_mb=sum(values.nbytes for values in tables.values()) / 1e6)


def main(
    images: Annotated[int, typer.Option(help="N.")] = 20_000,
    classes: Annotated[int, typer.Option(help="K.")] = 100,
    labelled: Annotated[int, typer.Option(help="L, labelled already.")] = 100,
    picks: Annotated[int, typer.Option(min=3, help="Q, to choose.")] = 20,
    strategy: Annotated[str, typer.Option(help="PCoreSet, Coreset, BADGE, …")] = "PCoreSet",
    features: Annotated[int, typer.Option(help="d, where the strategy reads features.")] = 64,
    sharpness: Annotated[float, typer.Option(help="Logit of the likeliest class above the noise.")] = 8.0,
    folder: Annotated[Path | None, typer.Option(help="Where the file is made; needs 2 N K bytes.")] = None,
    limit_gb: Annotated[float, typer.Option(help="Fail when the process takes more memory, in 10^9 bytes.")] = 8.0,
    out: Annotated[Path | None, typer.Option(help="A JSON file; what it has of other strategies stays.")] = None,
) -> None:
    """Make a pool in a temporary folder, choose, and print times and peak memory."""
    made = STRATEGIES.make(dict(type=strategy))
    progress, report = run_progress(Console(stderr=True), strategy)
    load = os.getloadavg()[0]
    with progress, tempfile.TemporaryDirectory(dir=folder) as name:
        tables: dict[str, np.ndarray] = {}
        if "probabilities" in made.needs:
            tables["probabilities"] = table(Path(name) / "probabilities.npy", images, classes, sharpness, report)
        if "features" in made.needs:
            tables["features"] = table(Path(name) / "features.npy", images, features, None, report)
        try:
            with memory_limited(limit_gb):
                found = dict(strategy=strategy) | chosen_from(tables, made, labelled, picks, report)
        except (MemoryError, RuntimeError) as error:
            if isinstance(error, RuntimeError) and "allocate memory" not in str(error):  # torch's MemoryError
                raise
            raise _too_much(strategy, f"wanted more than {limit_gb} GB: {error}") from error
    found |= dict(limit_mb=1000 * limit_gb, cpu=cpu_name(), threads=torch.get_num_threads(), load_before=load)
    rounded = {k: round(float(v), 5) if isinstance(v, float) else v for k, v in found.items()}
    print(json.dumps(rounded))
    if found["peak_mb"] > 1000 * limit_gb:
        raise _too_much(strategy, f"took {found['peak_mb']:,.0f} MB, more than {limit_gb} GB")
    if out is not None:
        write_json(out, (json.loads(out.read_text()) if out.is_file() else {}) | {strategy: rounded})


def _too_much(strategy: str, said: str) -> typer.Exit:
    typer.echo(f"{strategy} {said}", err=True)
    return typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
