"""Example images of detection by the command, on runs that were really trained: figures, files and the page."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner

from limbeck.cli import leaderboard
from limbeck.engine.evaluate import evaluate_weights
from tests.leaderboard.pages import text_of


def call(*args: object) -> str:
    done = CliRunner().invoke(leaderboard.app, [str(word) for word in args], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


def alone(record: Any, runs: Path, sample: int) -> dict[str, float]:
    """Figures of one test image by the engine's evaluation of a split whose other images are left out."""
    import limbeck.engine.evaluate as engine

    config = dict(record.config)
    dataset = engine.build_dataset(engine.parse(engine.RunConfig, config, "run").data, "test")
    loader = engine.eval_loader
    with pytest.MonkeyPatch.context() as patch:
        subset = engine.torch.utils.data.Subset(dataset, [sample])
        patch.setattr(engine, "eval_loader", lambda data, split: loader(data, split, subset))
        return evaluate_weights(config, runs / record.id / "student.safetensors")


def test_command_draws_detections_and_build_says_what_the_colours_mean(
    digit_runs: SimpleNamespace, tmp_path: Path
) -> None:
    site, results, runs = tmp_path / "site", digit_runs.results, digit_runs.runs
    call("examples", "toy-boxes", "--results", results, "--runs", runs, "--out", site, "--count", 3)
    picture = site / "examples" / "toy-boxes" / "big-small.v1.png"
    found = json.loads(picture.with_suffix(".json").read_text())
    assert found["task"] == "object-detection"
    assert {m: v["record"] for m, v in found["members"].items()} == {
        m: digit_runs.records[name].id for m, name in (("teacher", "teacher"), ("plain", "plain"), ("best", "ACAM-KD"))
    }
    for one in found["samples"]:
        for member, name in (("plain", "plain"), ("best", "ACAM-KD")):
            wanted = alone(digit_runs.records[name], runs, one["sample"])
            assert one["metrics"][member] == pytest.approx(wanted)
    call("build", "--results", results, "--out", site)
    text = text_of(site / "index.html", "toy-boxes")
    assert '<img src="../examples/toy-boxes/big-small.v1.png"' in text
    for phrase in (
        "green where ACAM-KD alone found it with a box of its class, of that score and IoU 0.5 or more",
        "Boxes of score 0.3 or more are drawn",
        "dashed black where neither",
    ):
        assert phrase in text
    assert "where no class is labelled" not in text
