"""A million images with a thousand classes: what was measured, and that the measurement can fail."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[4]
MEASURED: dict[str, dict[str, Any]] = json.loads(
    (ROOT / "benchmarks" / "perf" / "selection.json").read_text(encoding="utf-8")
)


def measure(*args: object) -> subprocess.CompletedProcess[str]:
    """A small pool, in a process of its own."""
    size = ("--images", 3000, "--classes", 50, "--features", 8, "--labelled", 20, "--picks", 5)
    command = [sys.executable, "-m", "benchmarks.perf.selection", *(str(a) for a in (*size, *args))]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("strategy", ["PCoreSet", "Coreset"])
def test_the_largest_size_was_within_8_gb(strategy):
    found = MEASURED[strategy]
    columns = found.get("columns_of_probabilities", found.get("columns_of_features"))
    assert (found["images"], columns, found["file_mb"]) == (10**6, 1000, 2000.0)
    assert found["limit_mb"] == 8000.0
    assert found["peak_mb"] < found["limit_mb"]
    assert found["seconds_a_pick"] > 0


@pytest.mark.skipif(sys.platform != "linux", reason="needs a limit on the memory of a process")
def test_a_process_that_wants_more_than_the_limit_fails_and_leaves_no_figure(tmp_path):
    out = tmp_path / "selection.json"
    small = measure("--limit-gb", 0.05, "--out", out)
    assert small.returncode == 1
    # A library that cannot even start says so in its own words.
    assert "PCoreSet wanted more than 0.05 GB" in small.stderr or "Memory allocation still failed" in small.stderr
    assert not out.exists()
    enough = measure("--out", out)
    assert enough.returncode == 0, enough.stderr
    found = json.loads(out.read_text())["PCoreSet"]
    assert found == json.loads(enough.stdout.splitlines()[-1])
    assert set(found) == set(MEASURED["PCoreSet"])


def test_peak_above_the_limit_fails(monkeypatch, capsys):
    """Pages of the file count too, which the system does not refuse."""
    import typer

    from benchmarks.perf import selection

    monkeypatch.setattr(selection.PeakMemory, "megabytes", lambda self: 8001.0)
    monkeypatch.setattr(selection, "memory_limited", lambda gigabytes: selection.tempfile.TemporaryDirectory())
    with pytest.raises(typer.Exit) as stop:
        selection.main(images=500, classes=10, labelled=5, picks=3)
    assert stop.value.exit_code == 1
    assert "PCoreSet took 8,001 MB, more than 8.0 GB" in capsys.readouterr().err
