"""Training curves in records: short, finite, rounded, column by column; older records stay byte for byte."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from limbeck.engine.history import POINTS, History, history_of
from limbeck.engine.record import RunRecord, read_record, write_record
from limbeck.errors import CorruptFile
from tests.engine.test_record import DATA, at, put, record_dict

RESULTS = Path(__file__).parents[2] / "results"
CURVES: dict[str, Any] = {
    "epochs": [1, 2],
    "learning_rate": [0.05, 0.0001],
    "losses": {"loss": [2.5, 1.25], "student.loss_ce": [1.5, 0.75], "kd.loss_kd": [1.0, None]},
    "val_epochs": [2],
    "val_metrics": {"top1": [98.0]},
}


def rows(count: int) -> list[tuple[int, float, dict[str, float]]]:
    return [(n, 0.1 / n, {"loss": 1.0 / n}) for n in range(1, count + 1)]


# --- what is kept ---


@given(st.integers(1, 5000), st.integers(0, 5000))
def test_columns_are_short_evenly_spaced_and_end_with_the_last(epochs: int, validations: int):
    found = history_of(rows(epochs), [(n, {"top1": float(n)}) for n in range(1, validations + 1)])
    assert found is not None
    for kept, of in ((found.epochs, epochs), (found.val_epochs, validations)):
        assert len(kept) <= POINTS
        assert kept[-1:] == ([of] if of else [])
        assert len(set(np.diff(kept).tolist())) <= 1  # every k-th
        assert len(kept) == of or len(kept) > POINTS / 2  # no more is left out than has to be
    assert found.val_metrics.get("top1", []) == found.val_epochs
    assert found.losses["loss"] == [float(f"{1 / n:.6g}") for n in found.epochs]


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_figures_have_six_digits_and_survive_json(value: float):
    found = history_of([(1, value, {"loss": value})], [(1, {"top1": value})])
    assert found is not None
    (rate,), (loss,), (metric,) = found.learning_rate, found.losses["loss"], found.val_metrics["top1"]
    assert rate == loss == metric
    assert loss is not None
    assert math.isclose(loss, value, rel_tol=5.1e-6, abs_tol=5e-324)
    assert History.model_validate(json.loads(found.model_dump_json())) == found


def test_what_is_not_finite_or_was_not_there_is_none():
    found = history_of(
        [(1, 0.1, {"loss": 2.0, "a.loss_x": 2.0}), (2, 0.1, {"loss": float("inf"), "b.loss_y": float("nan")})],
        [(1, {"top1": 50.0}), (2, {"top1": 60.0, "fid": float("-inf")})],
    )
    assert found is not None
    assert found.losses == {"loss": [2.0, None], "a.loss_x": [2.0, None], "b.loss_y": [None, None]}
    assert found.val_metrics == {"top1": [50.0, 60.0], "fid": [None, None]}


def test_what_is_no_loss_is_left_out():
    found = history_of([(1, 0.1, {"loss": 2.0, "student.loss_ce": 2.0, "student.accuracy": 0.5})], [])
    assert found is not None
    assert list(found.losses) == ["loss", "student.loss_ce"]
    assert (found.val_epochs, found.val_metrics) == ([], {})


def test_a_run_without_epochs_has_none():
    assert history_of([], []) is None


# --- in a record ---


def test_record_with_a_history_is_read_back_equal(tmp_path):
    record = RunRecord.model_validate(record_dict(history=CURVES))
    path = write_record(tmp_path, record)
    assert read_record(path) == record
    assert json.loads(path.read_text()) == record_dict(history=CURVES)


def test_record_without_one_is_written_without_the_key():
    record = RunRecord.model_validate(record_dict())
    assert record.history is None
    assert "history" not in record.model_dump(mode="json")
    assert "history" not in json.loads(record.model_dump_json())
    assert read_record(DATA / "record_v1.json").history is None


def test_committed_records_are_rewritten_byte_for_byte(tmp_path):
    files = sorted(p for p in RESULTS.rglob("*.json") if not p.name.endswith(".failed.json"))[::40]
    if not files:
        pytest.skip("no records in this checkout")
    same = 0
    for file in files:
        written = write_record(tmp_path, read_record(file)).read_bytes()
        if "assumption" in json.loads(file.read_bytes()):  # the oldest gain what has a default
            assert written == file.read_bytes(), file
            same += 1
        assert b'"history"' not in written or b'"history"' in file.read_bytes()
    assert same > len(files) / 2


@pytest.mark.parametrize(
    ("where", "bad", "said"),
    [
        ("extra", 1, "history.extra: Extra inputs"),
        ("epochs", [], "history.epochs: "),
        ("epochs", [0, 1], r"history.epochs.0: "),
        ("epochs", [2, 1], "epochs do not rise"),
        ("epochs", [1, 1], "epochs do not rise"),
        ("epochs", [1, 3], "history goes to epoch 3 of 2"),
        ("learning_rate", [0.1], r"'learning_rate' has 1 values for 2 epochs"),
        ("losses", {"loss": [1.0, 2.0, 3.0]}, r"'loss' has 3 values for 2 epochs"),
        ("losses", {"loss": [1.0, float("nan")]}, "finite"),
        ("losses", {"loss": [1.0, float("inf")]}, "finite"),
        ("losses", {"loss": [1.0, "high"]}, r"history.losses.loss.1"),
        ("learning_rate", [0.1, float("-inf")], "finite"),
        ("val_epochs", [1, 2], r"'top1' has 1 values for 2 epochs"),
        ("val_metrics", {"top1": [float("nan")]}, "finite"),
    ],
)
def test_history_outside_the_schema_is_refused_and_named(tmp_path, where, bad, said):
    value = at(record_dict(history=CURVES), f"history.{where}", bad)
    with pytest.raises(CorruptFile, match=rf"r\.json: .*{said}"):
        read_record(put(tmp_path, value))


def test_history_longer_than_it_may_be_is_refused(tmp_path):
    many = list(range(1, POINTS + 2))
    value = record_dict(history=dict(epochs=many, learning_rate=[0.1] * len(many), losses={}))
    value = at(value, "recipe.epochs", len(many))
    with pytest.raises(CorruptFile, match=r"history.epochs: .*200"):
        read_record(put(tmp_path, value))
