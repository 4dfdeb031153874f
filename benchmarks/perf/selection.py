"""Time and memory of choosing images from a file of probabilities in half precision.

    python -m benchmarks.perf.selection                                       some seconds
    python -m benchmarks.perf.selection --images 1000000 --classes 1000 --labelled 1000 --picks 1000
                                                                              the largest size that is promised: 8 GB

Prints one JSON line. The peak is of the whole process and counts the file's pages that the system keeps in memory,
at most `file_mb`, which it takes back when others need them.
"""

from __future__ import annotations

import json
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Annotated

import numpy as np
import torch
import typer

from limbeck.engine.cost import PeakMemory
from limbeck.engine.registry import STRATEGIES
from limbeck.engine.selection import Pool

ROWS = 1000


def table(path: Path, images: int, width: int, sharpness: float | None, seed: int = 0) -> np.ndarray:
    """Probabilities of a student that is `sharpness` nats sure of one class a row; None: normal features."""
    made = np.lib.format.open_memmap(path, "w+", np.float16, (images, width))
    rng = np.random.default_rng(seed)
    for start in range(0, images, ROWS):
        rows = torch.from_numpy(rng.standard_normal((min(ROWS, images - start), width), np.float32))
        if sharpness is not None:
            rows[torch.arange(len(rows)), torch.from_numpy(rng.integers(0, width, len(rows)))] += sharpness
            rows = rows.softmax(1)
        made[start : start + len(rows)] = rows.numpy()
    made.flush()
    return np.load(path, mmap_mode="r")


def main(
    images: Annotated[int, typer.Option(help="N.")] = 20_000,
    classes: Annotated[int, typer.Option(help="K.")] = 100,
    labelled: Annotated[int, typer.Option(help="L, labelled already.")] = 100,
    picks: Annotated[int, typer.Option(help="Q, to choose; two at least.")] = 20,
    strategy: Annotated[str, typer.Option(help="PCoreSet, Coreset, BADGE, …")] = "PCoreSet",
    features: Annotated[int, typer.Option(help="d, where the strategy reads features.")] = 64,
    sharpness: Annotated[float, typer.Option(help="Logit of the likeliest class above the noise.")] = 8.0,
    folder: Annotated[Path | None, typer.Option(help="Where the file is made; needs 2 N K bytes.")] = None,
) -> None:
    """Make a pool in a temporary folder, choose, and print times and peak memory."""
    made = STRATEGIES.make(dict(type=strategy))
    with tempfile.TemporaryDirectory(dir=folder) as name:
        probabilities = table(Path(name) / "probabilities.npy", images, classes, sharpness)
        wide = table(Path(name) / "features.npy", images, features, None) if "features" in made.needs else None
        ids = np.arange(images)
        clock = [time.perf_counter()]
        peak = PeakMemory(torch.device("cpu"))
        labels = np.zeros(labelled, np.int64)
        pool = Pool(
            probabilities=probabilities,
            features=wide,
            labelled=ids[:labelled],
            labels=labels,
            unlabelled=ids[labelled:],
        )
        clock.append(time.perf_counter())
        done = lambda count, total, unit: clock.append(time.perf_counter()) if unit == "picks" else None  # noqa: E731
        made.choose(pool, picks, seed=0, progress=done)
        gaps = np.diff(clock)
        found = dict(strategy=strategy, images=images, classes=classes, labelled=labelled, picks=picks)
        found |= dict(seconds_of_checks=gaps[0], seconds_to_first_pick=gaps[1], seconds_in_all=clock[-1] - clock[0])
        found |= dict(seconds_a_pick=median(gaps[2:]) if len(gaps) > 2 else None, peak_mb=peak.megabytes())
        found |= dict(file_mb=(probabilities.nbytes + (0 if wide is None else wide.nbytes)) / 1e6)
    print(json.dumps({k: round(float(v), 5) if isinstance(v, float) else v for k, v in found.items()}))


if __name__ == "__main__":
    typer.run(main)
