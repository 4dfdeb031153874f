"""`limbeck leaderboard`: what each command prints and how it exits."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from limbeck.cli import leaderboard
from limbeck.engine.classification import ClassificationMetric
from limbeck.engine.saved_predictions import PredictionRecorder
from limbeck.errors import ConfigError, UserError
from limbeck.leaderboard.checks import DuplicateRecord, NoResults
from tests.leaderboard.fabricate import fabricate, suite, vary, with_values, write_all


@pytest.fixture
def results(tmp_path: Path) -> Path:
    return write_all(tmp_path / "results", suite(("KD", "DKD"), range(3)))


def call(*args: object, status: int = 0) -> str:
    done = CliRunner().invoke(leaderboard.app, [str(a) for a in args])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == status, done.output
    return done.output


def test_show_prints_tables(results: Path) -> None:
    text = call("show", "--results", results)
    assert "toy/big-small" in text
    assert "DKD" in text
    assert "…" not in text  # nothing is cut in a pipe either


def test_show_json(results: Path) -> None:
    tables = json.loads(call("show", "toy", "--results", results, "--json"))
    assert [r["method"] for r in tables[0]["rows"]][:2] == ["teacher", "plain"]


def test_show_prints_ablations_unless_told_not_to(results: Path) -> None:
    write_all(results, vary("KD", "temperature", [2.0, 8.0]))
    assert "KD: temperature" in call("show", "--results", results)
    assert "KD: temperature" not in call("show", "--results", results, "--no-ablations")
    (table,) = json.loads(call("show", "--results", results, "--json"))
    assert [p["label"] for p in table["ablations"][0]["points"]] == ["base", "2", "8"]
    assert "ablations" not in json.loads(call("show", "--results", results, "--json", "--no-ablations"))[0]


def test_variants_stay_out_of_the_readme(results: Path, tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text("<!-- table: toy -->\n<!-- /table -->\n")
    call("build", "--results", results, "--out", tmp_path / "site", "--readme", readme)
    write_all(results, vary("KD", "temperature", [2.0, 8.0]))
    assert "what the records say" in call("build", "--results", results, "--readme", readme, "--check")


def test_compare_takes_a_variant(results: Path) -> None:
    write_all(results, vary("KD", "temperature", [2.0, 8.0]))
    text = call("compare", "toy", "KD@temperature=2.0", "KD", "--results", results)
    assert "KD@temperature=2.0 against KD" in text
    assert "KD: temperature" in text
    assert "over KD" not in call("compare", "toy", "DKD", "KD", "--results", results, "--no-ablations")
    found = json.loads(call("compare", "toy", "KD@temperature=2", "KD", "--results", results, "--json"))
    assert found[0]["a"] == "KD@temperature=2.0"


def test_missing_results_are_one_sentence(tmp_path: Path) -> None:
    out = ["--out", tmp_path / "o"]
    for command in (
        ["show"],
        ["build", *out],
        ["examples", "toy", *out],
        ["masks", "toy", *out],
        ["compare", "toy", "a", "b"],
        ["verify"],
    ):
        with pytest.raises(NoResults, match="no such folder of records"):
            call(*command, "--results", tmp_path / "absent")
    with pytest.raises(NoResults):
        call("reproduce", tmp_path / "absent", tmp_path / "absent")
    with pytest.raises(UserError, match="holds no record"):
        call("show", "--results", tmp_path)


def test_build_page_and_readme(results: Path, tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text("<!-- table: toy -->\n<!-- /table -->\n")
    assert "stale" in call("build", "--results", results, "--readme", readme, "--check", status=1)
    text = call("build", "--results", results, "--out", tmp_path / "site", "--readme", readme)
    assert "index.html" in text
    assert "tables regenerated" in text
    assert (tmp_path / "site" / "index.html").is_file()
    assert "| DKD |" in readme.read_text().replace("**", "")
    assert "what the records say" in call("build", "--results", results, "--readme", readme, "--check")


def test_compare_prints_and_dumps(results: Path) -> None:
    assert "DKD − KD" in call("compare", "toy", "DKD", "kd", "--results", results)
    found = json.loads(call("compare", "toy", "DKD", "KD", "--results", results, "--json"))
    assert found[0]["metrics"]["top1"]["paired"]["seeds"] == [0, 1, 2]


def test_reproduce_exit_status(results: Path, tmp_path: Path) -> None:
    assert "4 identical" in call("reproduce", results, results)
    write_all(tmp_path / "ours", with_values("plain", [1.0, 1.1, 1.2]))
    text = call("reproduce", tmp_path / "ours", results, status=1)
    assert "differs" in text
    assert "missing" in text
    cells = json.loads(call("reproduce", results, results, "--json"))["cells"]
    assert {c["verdict"] for c in cells} == {"identical"}


def test_verify_exit_status(results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "w.safetensors"
    file.write_bytes(b"w")
    digest = hashlib.sha256(b"w").hexdigest()
    record = fabricate("KD", 0, student_sha256=digest)
    write_all(results, [record, *vary("KD", "temperature", [2.0]), fabricate("teacher-vit", 0)])
    answer = dict(record.metrics)

    def evaluation() -> tuple[Any, Any]:
        return (lambda config, path: answer), {digest: file}

    monkeypatch.setattr(leaderboard, "_evaluation", evaluation)
    text = call("verify", "--results", results)
    assert "toy/big-small/kd/seed0: holds" in text
    assert "1 holds, 0 off, 13 no weights" in text
    answer["top1"] += 1
    assert "off by +1 top1" in call("verify", "--results", results, status=1)
    found = json.loads(call("verify", "--results", results, "--json", status=1))
    assert [f["text"] for f in found if f["verdict"] == "off"] == ["off by +1 top1"]


def test_verify_takes_from_runs_what_the_zoo_lacks(
    results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = fabricate("KD", 0, student_sha256=hashlib.sha256(b"w").hexdigest())
    write_all(results, [record])
    monkeypatch.setattr(leaderboard, "_evaluation", lambda: ((lambda config, path: record.metrics), {}))
    assert "0 holds, 0 off" in call("verify", "--results", results)
    file = tmp_path / "runs" / record.id / "student.safetensors"
    file.parent.mkdir(parents=True)
    file.write_bytes(b"w")
    assert "1 holds, 0 off" in call("verify", "--results", results, "--runs", tmp_path / "runs")
    file.write_bytes(b"another run's")
    text = call("verify", "--results", results, "--runs", tmp_path / "runs", status=1)
    assert "toy/big-small/kd/seed0: changed: weights: " in text
    assert "expected" in text
    with pytest.raises(ConfigError, match="is not a folder"):
        call("verify", "--results", results, "--runs", tmp_path / "no")


def test_verify_from_predictions_alone(results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    metric = ClassificationMetric()
    seen = PredictionRecorder(metric)
    logits = torch.eye(4)[torch.tensor([0, 1, 2, 3, 3])]
    seen.update([dict(logits=logits, labels=torch.tensor([0, 1, 2, 3, 0]), ids=torch.arange(5))])
    figures, config = seen.values(), {"metric": {"type": "ClassificationMetric"}}
    file = tmp_path / "runs" / fabricate("KD", 0).id / "predictions.safetensors"
    digest = seen.save(file)
    write_all(results, [fabricate("KD", 0, config=config, metrics=figures, predictions_sha256=digest)])
    monkeypatch.setattr(leaderboard, "_evaluation", lambda: (None, {}))
    words = ("verify", "--results", results, "--predictions-only", "--runs", tmp_path / "runs")
    text = call(*words)
    assert text.splitlines()[0] == "toy/big-small/kd/seed0: holds (predictions)"
    assert text.splitlines()[-1] == "1 holds, 0 off, 0 no weights, 9 no predictions"
    file.write_bytes(file.read_bytes()[:-1] + b"\xff")
    assert f"toy/big-small/kd/seed0: changed: predictions: {file}: sha256 is" in call(*words, status=1)
    with pytest.raises(ConfigError, match="lie in a folder of runs; name it"):
        call("verify", "--results", results, "--predictions-only")


OTHERS = ["reported", "compare-reported", "submit"]
DRAWING = ["examples", "masks", "voxels", "reliability", "chosen"]


@pytest.mark.parametrize("command", ["show", "build", *DRAWING, *OTHERS, "compare", "curves", "verify", "reproduce"])
def test_help_has_an_example(command: str) -> None:
    assert "Example: limbeck leaderboard" in " ".join(call(command, "--help").split())


def test_results_of_several_places(results: Path, tmp_path: Path) -> None:
    theirs = write_all(tmp_path / "theirs", suite(("DIST",), range(3)))
    both = ("--results", results, "--results", theirs)
    (table,) = json.loads(call("show", *both, "--json"))
    assert {r["method"] for r in table["rows"]} == {"teacher", "plain", "KD", "DKD", "DIST"}
    assert "DIST − KD" in call("compare", "toy", "DIST", "KD", *both)
    assert "0 holds, 0 off, 13 no weights" in call("verify", *both)
    site = tmp_path / "site"
    call("build", *both, "--out", site)
    assert len(list((site / "records").rglob("*.json"))) == 13
    write_all(theirs, [fabricate("KD", 0, metrics={"top1": 1.0})])
    for command in (["show"], ["compare", "toy", "DIST", "KD"], ["verify"], ["build", "--out", tmp_path / "other"]):
        with pytest.raises(DuplicateRecord, match=r"results/.*kd/seed0\.json and .*theirs/.*kd/seed0\.json"):
            call(*command, *both)
