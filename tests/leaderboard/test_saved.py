"""Figures from saved predictions: of every task those of the record; whoever changes a file or a figure is named."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from limbeck.engine.config import PairConfig, TrainedTeacher, expand, load_pair, parse, with_overrides
from limbeck.engine.evaluate import evaluate_weights
from limbeck.engine.record import RunRecord, read_record, record_path
from limbeck.engine.registry import DATASETS
from limbeck.engine.run import RunOptions, execute
from limbeck.engine.saved_predictions import read_predictions, saved_figures
from limbeck.engine.weights import sha256_file
from limbeck.errors import ConfigError, DataMissing
from limbeck.leaderboard.audit import audit, counts, named_files
from limbeck.leaderboard.saved import both, predictions_file, verify_predictions
from limbeck.leaderboard.verify import Verification, verification_json
from tests.leaderboard.toy_runs import edit

MATCH = "toy/toy4-toy2/toymatch/seed1"


# --- every task ---


def holds(record: RunRecord, runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All figures of the record, and those of its classes, come again from the file; no data set is opened for them."""
    path = predictions_file(record, runs)
    assert path is not None
    with monkeypatch.context() as patch:
        if record.task != "image-generation":  # whose metric reads the real images
            patch.setattr(type(DATASETS), "make", refuse(DATASETS))
        found, by_class = saved_figures(record.config, path)
        verified = verify_predictions(record, path)
    assert found == pytest.approx(record.metrics, abs=1e-9, rel=1e-9)
    assert {m: dict(zip(record.data.classes, v)) for m, v in by_class.items()} == {
        m: pytest.approx(v, abs=1e-9, rel=1e-9) for m, v in record.per_class.items()
    }
    assert verified.text == "holds (predictions)"
    assert set(verified.differences) == set(record.metrics)


def refuse(registry: Any) -> Any:
    whole = type(registry).make

    def make(self: Any, *args: Any, **kwargs: Any) -> Any:
        assert self is not registry, "a data set was asked for"
        return whole(self, *args, **kwargs)

    return make


def small_runs(name: str, methods: list[str], changes: list[str], folder: Path) -> SimpleNamespace:
    """Runs of a shipped pair, made small: the teacher and students of it."""
    pair = parse(PairConfig, with_overrides(load_pair(name).model_dump(), changes), name)
    options = RunOptions(folder / "runs", folder / "records", folder / "cache", threads=1, latency_ms=1.0)
    teacher = execute(expand(pair, "teacher", 0), options)
    assert teacher is not None
    found = {"teacher": teacher}
    for method in methods:
        trained = {"teacher": TrainedTeacher(f"run://{teacher.id}", teacher.student_sha256)}
        made = execute(expand(pair, method, 0, trained=trained), options)
        assert made is not None
        found[method] = made
    return SimpleNamespace(runs=folder / "runs", results=folder / "records", records=found)


def test_classification(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    short = ["recipe.epochs=1", "teacher_recipe.epochs=1", "data.train.limit=128"]
    made = small_runs("vision/digits", ["KD"], short, tmp_path)
    for record in made.records.values():
        holds(record, made.runs, monkeypatch)
    assert "agreement" in made.records["KD"].metrics


def test_segmentation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mmseg", reason="the networks are mmsegmentation's")
    short = ["recipe.epochs=2", "data.train.count=8", "data.val.count=2", "data.test.count=3", "data.batch_size=8"]
    made = small_runs("segmentation/digit_demo", ["CWD"], short, tmp_path)
    for record in made.records.values():
        holds(record, made.runs, monkeypatch)
    record = made.records["CWD"]
    assert "agreement" in record.metrics
    path = predictions_file(record, made.runs)
    assert path is not None
    maps = 3 * 32 * 32  # one byte a pixel: the student's, the teacher's, and the labels once
    assert 3 * maps < path.stat().st_size < 3.5 * maps


def test_detection(digit_runs: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    for record in digit_runs.records.values():
        holds(record, digit_runs.runs, monkeypatch)
        (path,) = [predictions_file(record, digit_runs.runs)]
        assert all(teacher is None for _, teacher in read_predictions(path))  # type: ignore[arg-type]


def test_lidar(lidar_runs: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    for record in lidar_runs.records.values():
        holds(record, lidar_runs.runs, monkeypatch)


def test_generation(generator_runs: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    for record in generator_runs.records.values():
        holds(record, generator_runs.runs, monkeypatch)
    assert "mse_to_teacher" in generator_runs.records["CD"].metrics


# --- tampering ---


def forbidden(*args: Any) -> Any:
    raise AssertionError("weights or data were looked at")


def verified(toys: SimpleNamespace, *names: str, only: bool = True, **changes: Any) -> list[Verification]:
    files = named_files(toys.records, list(names) or None)
    given: dict[str, Any] = dict(data_hash=forbidden if only else lambda config: None, runs=toys.runs)
    evaluate = forbidden if only else evaluate_weights
    return list(audit(files, evaluate, {}, results=toys.records, predictions_only=only, **given | changes))


def test_predictions_alone_are_enough(toys: SimpleNamespace) -> None:
    for weights in toys.runs.rglob("student.safetensors"):
        weights.unlink()
    found = verified(toys)
    assert {one.text for one in found} == {"holds (predictions)"}
    assert counts(found) == {"holds": 7, "off": 0, "no weights": 0}
    assert verification_json(found[0])["checked"] == ("predictions",)
    assert {one.text for one in verified(toys, only=False)} == {"holds (predictions)"}


def test_a_flipped_byte_is_named_and_the_rest_holds(toys: SimpleNamespace) -> None:
    file = toys.runs / MATCH / "predictions.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(bytes(data))
    for only in (True, False):
        found = {one.id: one.text for one in verified(toys, only=only)}
        said = found.pop(MATCH)
        assert said.startswith(f"changed: predictions: {file}: sha256 is ")
        assert "expected" in said
        assert set(found.values()) == {"holds (predictions)" if only else "holds (weights, predictions)"}


def test_a_changed_figure_is_off_by_what_it_was_changed(toys: SimpleNamespace) -> None:
    path = record_path(toys.records, MATCH)
    edit(path, metrics__top1=json.loads(path.read_text())["metrics"]["top1"] + 5)
    (found,) = verified(toys, MATCH)
    assert (found.verdict, found.text) == ("off", "off by -5 top1 (predictions)")
    (found,) = verified(toys, MATCH, only=False)
    assert found.text == "off by -5 top1"  # the weights say so too


def test_predictions_changed_with_their_hash_are_off_where_weights_hold(toys: SimpleNamespace) -> None:
    """The file and its hash in the record fit, and the record's figures are not its."""
    file = toys.runs / MATCH / "predictions.safetensors"
    tensors = load_file(file)
    with safe_open(file, framework="pt") as opened:
        metadata = opened.metadata()
    for name in [n for n in tensors if n.endswith("/logits")]:
        labels = tensors[name.removeprefix("teacher/").replace("logits", "labels")]
        tensors[name] = torch.nn.functional.one_hot(labels.long(), 3).float()  # all are right
    save_file(tensors, file, metadata=metadata)
    edit(record_path(toys.records, MATCH), predictions_sha256=sha256_file(file))
    (found,) = verified(toys, MATCH, only=False)
    short = 100 - read_record(record_path(toys.records, MATCH)).metrics["top1"]
    assert short > 1
    assert found.text == f"off by {short:+.4g} top1 (predictions)"


def test_figures_by_class_and_those_without_a_tolerance_are_judged(
    digit_runs: SimpleNamespace, generator_runs: SimpleNamespace
) -> None:
    record = digit_runs.records["plain"]
    path = predictions_file(record, digit_runs.runs)
    assert path is not None
    better = {"AP": record.per_class["AP"] | {"3": record.per_class["AP"]["3"] + 2}}
    found = verify_predictions(record.model_copy(update=dict(per_class=better)), path)
    assert found.text == "off by -2 AP of 3 (predictions)"
    figures = record.metrics | {"AP50": record.metrics["AP50"] + 2}
    found = verify_predictions(record.model_copy(update=dict(metrics=figures)), path)
    assert found.text == "off by -2 AP50 (predictions)"
    record = generator_runs.records["CD"]
    path = predictions_file(record, generator_runs.runs)
    assert path is not None
    figures = record.metrics | {"mse_to_teacher": 0.9 * record.metrics["mse_to_teacher"]}
    found = verify_predictions(record.model_copy(update=dict(metrics=figures)), path)
    assert found.off == ("mse_to_teacher",)


def test_figures_of_other_data_and_rounds_are_left_alone(trained: SimpleNamespace) -> None:
    record = trained.made[MATCH]
    path = predictions_file(record, trained.runs)
    assert path is not None
    more = dict(metrics=record.metrics | {"street.top1": 3.0, "top1@8": 2.0}, per_class={"street.top1": {"a": 1.0}})
    assert verify_predictions(record.model_copy(update=more), path).text == "holds (predictions)"


def test_records_without_predictions_verify_as_before(toys: SimpleNamespace) -> None:
    for path in toys.records.rglob("seed*.json"):
        raw = json.loads(path.read_text())
        del raw["predictions_sha256"]
        path.write_text(json.dumps(raw))
        assert read_record(path).predictions_sha256 is None
    assert {one.text for one in verified(toys, only=False)} == {"holds"}
    found = verified(toys)
    assert {one.text for one in found} == {"no predictions"}
    assert counts(found) == {"holds": 0, "off": 0, "no weights": 0, "no predictions": 7}


def test_predictions_that_are_not_there_are_no_fault(toys: SimpleNamespace) -> None:
    (toys.runs / MATCH / "predictions.safetensors").unlink()
    assert [one.text for one in verified(toys, MATCH)] == ["no predictions"]
    assert [one.text for one in verified(toys, MATCH, only=False)] == ["holds"]


def test_without_the_data_set_predictions_still_hold(toys: SimpleNamespace) -> None:
    def absent(config: object) -> str:
        raise DataMissing("toy is not on this machine; limbeck data get toy")

    (found,) = verified(toys, MATCH, only=False, data_hash=absent)
    assert found.text == "holds (predictions)"


def test_a_moved_record_is_named_here_too(toys: SimpleNamespace) -> None:
    path = record_path(toys.records, MATCH)
    path.rename(path.with_name("seed7.json"))
    assert "it was moved or edited" in {one.id: one.text for one in verified(toys)}[MATCH]


def test_runs_are_needed(toys: SimpleNamespace) -> None:
    with pytest.raises(ConfigError, match="name it, such as out/demo/runs, with --runs"):
        verified(toys, runs=None)
    with pytest.raises(ConfigError, match="is not a folder"):
        verified(toys, runs=toys.records / "no")


def test_a_metric_that_cannot_be_built_here_is_no_fault(toys: SimpleNamespace) -> None:
    record = read_record(record_path(toys.records, MATCH))
    path = predictions_file(record, toys.runs)
    assert path is not None
    config = record.config | {"metric": {"type": "ToyMetrik"}}
    found = verify_predictions(record.model_copy(update=dict(config=config)), path)
    assert (found.verdict, "ToyMetric" in found.changed) == ("not here", True)


def test_the_first_fault_counts() -> None:
    texts = {}
    for weights in ("holds", "off", "no weights", "changed", "not here"):
        for saved in ("holds", "off", "changed", "not here"):
            one = both(Verification("id", weights), Verification("id", saved, checked=("predictions",)))  # type: ignore[arg-type]
            texts[weights, saved] = (one.verdict, one.checked)
    of_both, of_saved = ("weights", "predictions"), ("predictions",)
    for saved in ("holds", "off", "changed", "not here"):
        assert texts["off", saved] == ("off", ())
        assert texts["changed", saved] == ("changed", ())
    for weights in ("holds", "no weights", "not here"):
        assert texts[weights, "off"] == ("off", of_saved)
        assert texts[weights, "changed"] == ("changed", of_saved)
        assert texts[weights, "not here"] == (weights, ())
    assert texts["holds", "holds"] == ("holds", of_both)
    assert texts["no weights", "holds"] == texts["not here", "holds"] == ("holds", of_saved)
    alone = Verification("id", "holds")
    assert both(alone, None) is alone
