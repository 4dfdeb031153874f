"""Verification with a made-up evaluation and made-up weight files."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from limbeck.errors import CorruptFile
from limbeck.leaderboard.store import load_results
from limbeck.leaderboard.verify import Tolerance, verification_json, verify_record
from tests.leaderboard.fabricate import fabricate, suite, vary, write_all

RECORDED = {"top1": 70.0, "nll": 2.0, "ece": 0.1}


@pytest.fixture
def weights(tmp_path: Path) -> dict[str, Path]:
    path = tmp_path / "w.safetensors"
    path.write_bytes(b"weights")
    return {hashlib.sha256(b"weights").hexdigest(): path}


def recorded(weights: dict[str, Path], seed: int = 0, **changes: Any) -> Any:
    return fabricate("KD", seed, student_sha256=next(iter(weights)), metrics=RECORDED, **changes)


@pytest.mark.parametrize(
    ("found", "verdict", "text"),
    [
        ({"top1": 70.05, "nll": 2.002, "ece": 9.0}, "holds", "holds"),
        ({"top1": 69.95, "nll": 1.998}, "holds", "holds"),
        ({"top1": 70.28, "nll": 2.0}, "off", "off by +0.28 top1"),
        ({"top1": 70.0, "nll": 1.9}, "off", "off by -0.1 nll"),
        ({"top1": 70.0, "nll": float("nan")}, "off", "off by +nan nll"),
        ({"top1": 70.0}, "off", "off: no nll"),
        ({"nll": 3.0}, "off", "off by +1 nll (no top1)"),
    ],
)
def test_verdicts(weights: dict[str, Path], found: dict[str, float], verdict: str, text: str) -> None:
    one = verify_record(recorded(weights), lambda config, path: found, weights)
    assert (one.verdict, one.text) == (verdict, text)
    assert json.loads(json.dumps(verification_json(one)))["text"] == text


def test_evaluation_gets_config_and_file(weights: dict[str, Path]) -> None:
    record = recorded(weights)
    seen = []
    verify_record(record, lambda config, path: seen.append((config, path)) or RECORDED, weights)
    assert seen == [(record.config, next(iter(weights.values())))]


def test_no_weights_are_not_evaluated(weights: dict[str, Path]) -> None:
    def never(config: dict[str, Any], path: Path) -> dict[str, float]:
        raise AssertionError

    assert verify_record(fabricate("KD", 0), never, weights).text == "no weights"


def test_variants_and_further_teachers_without_weights_are_told(weights: dict[str, Path], tmp_path: Path) -> None:
    write_all(tmp_path / "r", suite(("KD",), range(2)) + vary("KD", "temperature", [2.0], range(2)))
    write_all(tmp_path / "r", [fabricate("teacher-vit", 0, student_sha256=next(iter(weights)), metrics=RECORDED)])
    group = load_results(tmp_path / "r").groups[0]
    verified = [verify_record(record, evaluated, weights) for record in group.records]
    found = {v.id.removeprefix("toy/big-small/"): v.text for v in verified}
    names = [f"{m}/seed{s}" for m in ("plain", "kd", "kd@temperature=2.0") for s in range(2)]
    assert found == dict.fromkeys(["teacher/seed0", *names], "no weights") | {"teacher-vit/seed0": "holds"}


def evaluated(config: dict[str, Any], path: Path) -> dict[str, float]:
    return RECORDED


def test_damaged_weights_are_refused(weights: dict[str, Path]) -> None:
    path = next(iter(weights.values()))
    path.write_bytes(b"other")
    with pytest.raises(CorruptFile, match=r"w\.safetensors"):
        verify_record(recorded(weights), lambda config, path: RECORDED, weights)


def test_tolerances_can_be_given(weights: dict[str, Path]) -> None:
    found = {"top1": 70.4, "nll": 2.5}
    loose = {"top1": Tolerance(absolute=0.5), "nll": Tolerance(relative=0.3)}
    assert verify_record(recorded(weights), lambda c, p: found, weights, tolerances=loose).verdict == "holds"
    assert verify_record(recorded(weights), lambda c, p: found, weights, tolerances={}).off == ("top1",)


def test_primary_metric_of_other_tasks_is_judged(weights: dict[str, Path]) -> None:
    record = fabricate("KD", 0, student_sha256=next(iter(weights)), metrics={"mIoU": 40.0}, primary_metric="mIoU")
    assert verify_record(record, lambda c, p: {"mIoU": 40.04}, weights).verdict == "holds"
    assert verify_record(record, lambda c, p: {"mIoU": 40.2}, weights).verdict == "off"
