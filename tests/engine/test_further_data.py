"""Further test sets: their figures beside the test split's, left out where the files are not there."""

from __future__ import annotations

from pathlib import Path

import pytest

from limbeck.engine.config import RunConfig
from limbeck.engine.evaluate import evaluate_weights
from limbeck.engine.record import config_hash
from limbeck.engine.registry import DATASETS
from limbeck.engine.run import RunOptions, execute
from limbeck.errors import DataMissing, UnknownName
from tests.engine.toys import ToyData, toy_run

OTHER = dict(type="ToyData", split="test", variant=7, size=30)


@DATASETS.register_module()
class ToyGone(ToyData):
    def __init__(self, split: str = "test") -> None:
        raise DataMissing("toys are not in /nowhere; put them there")


def run_with(folder: Path, **also: dict) -> RunConfig:
    return toy_run(folder, "plain", data=dict(toy_run(folder).data.model_dump(), also=also))


def options(folder: Path, name: str = "runs") -> RunOptions:
    return RunOptions(out=folder / name, threads=1)


def test_figures_of_a_further_set_are_those_of_the_same_weights_tested_there(tmp_path):
    run = run_with(tmp_path, street=OTHER)
    record = execute(run, options(tmp_path))
    weights = tmp_path / "runs" / run.id / "student.safetensors"
    moved = dict(record.config, data=dict(record.config["data"], test=OTHER, also={}))
    assert record.metrics["street.top1"] == evaluate_weights(moved, weights)["top1"]
    assert record.metrics["street.top1"] != record.metrics["top1"]
    assert record.data.also["street"].model_dump() == dict(content_hash="00000007", samples=30)
    assert evaluate_weights(record.config, weights)["street.top1"] == record.metrics["street.top1"]


def test_a_further_set_changes_nothing_else(tmp_path):
    plain = execute(toy_run(tmp_path, "plain"), options(tmp_path, "a"))
    more = execute(run_with(tmp_path, street=OTHER), options(tmp_path, "b"))
    assert {k: v for k, v in more.metrics.items() if "." not in k} == plain.metrics
    assert more.val_metrics == plain.val_metrics
    assert "also" not in plain.config["data"]  # so that records from before keep their config's hash
    assert plain.config_hash == config_hash(plain.config)
    assert "also" not in plain.model_dump(mode="json")["data"]


def test_a_set_that_is_not_there_is_left_out_and_said(tmp_path):
    with pytest.warns(UserWarning, match="no figures of gone: toys are not in /nowhere"):
        record = execute(run_with(tmp_path, gone=dict(type="ToyGone"), street=OTHER), options(tmp_path))
    assert set(record.metrics) == {"top1", "street.top1"}
    assert set(record.data.also) == {"street"}


def test_a_wrong_name_is_an_error_and_no_missing_set(tmp_path):
    with pytest.raises(UnknownName, match=r"data\.also\.street"):
        execute(run_with(tmp_path, street=dict(type="ToyDatum")), options(tmp_path))
    assert not list(tmp_path.rglob("log.jsonl"))  # before any training
