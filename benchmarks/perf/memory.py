"""One training run in a process of its own; prints its peak memory above the start, and what a teacher must add."""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import torch

from benchmarks.perf.loops import engine_steps, every_method, pair, teacher_weights
from limbeck.engine.cost import PeakMemory
from limbeck.engine.registry import MODELS


def resident_mb() -> float:
    """Resident memory now."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024 / 1e6
    raise OSError("/proc/self/status has no VmRSS")


def main(case: str) -> None:
    """Run 'plain' or a method once and print one JSON line, in MB."""
    with tempfile.TemporaryDirectory() as folder:
        small = every_method(pair(batch=8, samples=104))
        weights = teacher_weights(small, Path(folder))
        engine_steps(small, case, weights, Path(folder) / "warm")  # libraries and thread pools are there now
        config = every_method(pair(batch=256, samples=1024))
        teacher = sum(p.numel() * p.element_size() for p in MODELS.make(config.teacher).parameters()) / 1e6
        taps = 256 * 100 * 4 / 1e6
        base = resident_mb()
        peak = PeakMemory(torch.device("cpu"))
        engine_steps(config, case, weights, Path(folder) / "run")
        print(json.dumps(dict(peak=peak.megabytes() - base, teacher=teacher, taps=taps)))


if __name__ == "__main__":
    main(sys.argv[1])
