"""Saved predictions: what the metric got comes back bit for bit, no figure changes, and other files are refused."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from limbeck.engine.loop import options_of_round
from limbeck.engine.record import read_record, record_path
from limbeck.engine.run import RunOptions, execute
from limbeck.engine.saved_predictions import (
    PREDICTIONS_FILE,
    PredictionRecorder,
    copy_predictions,
    read_predictions,
    saved_figures,
)
from limbeck.engine.weights import sha256_file, write_json
from limbeck.errors import ConfigError, CorruptFile
from tests.engine.toys import toy_run

RESULTS = Path(__file__).parents[2] / "results"


class Seeing:
    """A metric that remembers how it was called."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []

    def reset(self) -> None:
        self.calls = []

    def update(self, *given: Any) -> None:
        self.calls.append(given)

    def values(self) -> dict[str, float]:
        return {"calls": float(len(self.calls))}

    def per_class(self) -> dict[str, list[float]]:
        return {"calls": [float(len(self.calls))]}


class Blind(Seeing):
    reads_teacher: ClassVar[bool] = False


def same(a: Any, b: Any) -> bool:
    """Bit for bit, kinds of containers and of numbers, and all."""
    if isinstance(a, Tensor):
        return isinstance(b, Tensor) and a.dtype == b.dtype and a.shape == b.shape and bits(a) == bits(b)
    if type(a) is not type(b):
        return False
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b))
    return a == b or (isinstance(a, float) and math.isnan(a) and math.isnan(b))


def bits(tensor: Tensor) -> bytes:
    flat = tensor.contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b""


def saved(path: Path, *batches: tuple[Any, ...], metric: Any = None, limit: int = 1 << 20) -> str | None:
    recorder = PredictionRecorder(metric or Seeing(), limit)
    recorder.reset()
    for batch in batches:
        recorder.update(*batch)
    return recorder.save(path, id="toy/a/b/seed0")


def test_whatever_a_metric_may_get_comes_back_bit_for_bit(tmp_path):
    whole = torch.arange(20, dtype=torch.int64)
    boxes = torch.tensor([[1.5, -0.0, math.inf, math.nan]])
    first = [
        dict(
            boxes=boxes,
            nothing=torch.zeros(0, 4),
            no_labels=torch.zeros(0, dtype=torch.int64),
            labels=whole[3:7],  # a slice of more
            again=whole[3:7],  # the same memory twice
            turned=torch.arange(6.0).reshape(2, 3).T,
            spread=torch.tensor(0.25).expand(5),
            classes=torch.tensor(7),
            crowd=torch.tensor([True, False]),
            half=torch.tensor([1.5], dtype=torch.bfloat16),
            exact=torch.tensor([0.1], dtype=torch.float64),
            name="a 'quoted' näme/with a slash",
            text_as_key={"a/b": torch.ones(1), "a": {"b": torch.zeros(1)}},
            missing=None,
            numbers=[0, -3, 2**70, 0.1, math.inf, -math.inf, math.nan, True, False],
            both=(torch.ones(1), [], {}, ()),
        )
    ]
    second = [dict(boxes=torch.zeros(1, 0, 4)), dict(boxes=torch.zeros(1, 2, 4))]
    digest = saved(tmp_path / "p", (first,), (second,))
    assert digest == sha256_file(tmp_path / "p")
    found = list(read_predictions(tmp_path / "p"))
    assert [teacher for _, teacher in found] == [None, None]
    assert same([student for student, _ in found], [first, second])


@pytest.mark.parametrize(
    ("values", "stored"),
    [
        ([0, 255], torch.uint8),
        ([-1, 127], torch.int8),
        ([-1, 128], torch.int16),
        ([0, 256], torch.int16),
        ([40_000], torch.int32),
        ([2**31], torch.int64),
        ([-(2**63), 2**63 - 1], torch.int64),
    ],
)
def test_integers_are_stored_as_narrow_as_they_fit(tmp_path, values, stored):
    labels = torch.tensor(values, dtype=torch.int64)
    saved(tmp_path / "p", ([dict(labels=labels)],))
    assert {name: value.dtype for name, value in load_file(tmp_path / "p").items()} == {"0/0/labels": stored}
    (((found,), _),) = read_predictions(tmp_path / "p")
    assert same(found, dict(labels=labels))


def test_floats_are_never_narrowed(tmp_path):
    saved(tmp_path / "p", ([dict(a=torch.tensor([1.0], dtype=torch.float64), b=torch.tensor([1.0]))],))
    assert {v.dtype for v in load_file(tmp_path / "p").values()} == {torch.float64, torch.float32}


def test_ground_truth_that_both_carry_is_stored_once(tmp_path):
    labels, logits = torch.tensor([2, 0, 1]), torch.randn(3, 4)
    student, teacher = dict(logits=logits, labels=labels), dict(logits=logits + 1, labels=labels.clone())
    saved(tmp_path / "p", ([student], [teacher]))
    assert set(load_file(tmp_path / "p")) == {"0/0/logits", "0/0/labels", "teacher/0/0/logits"}
    ((mine, theirs),) = read_predictions(tmp_path / "p")
    assert same(mine, [student])
    assert same(theirs, [teacher])


def test_a_teacher_that_the_metric_does_not_read_is_not_stored(tmp_path):
    metric = Blind()
    saved(tmp_path / "p", ([dict(a=torch.ones(2))], [dict(a=torch.zeros(2))]), metric=metric)
    assert [len(call) for call in metric.calls] == [2]  # it gets it all the same
    assert [teacher for _, teacher in read_predictions(tmp_path / "p")] == [None]


def test_the_metric_gets_the_very_objects_and_gives_the_figures():
    metric = Seeing()
    recorder = PredictionRecorder(metric)
    recorder.reset()
    mine, theirs = [dict(a=torch.ones(2))], [dict(a=torch.zeros(2))]
    recorder.update(mine)
    recorder.update(mine, theirs)
    assert [len(call) for call in metric.calls] == [1, 2]
    assert metric.calls[1][0] is mine
    assert metric.calls[1][1] is theirs
    assert recorder.values() == {"calls": 2.0}
    assert recorder.per_class() == {"calls": [2.0]}


def test_tensors_are_remembered_and_not_copied():
    recorder = PredictionRecorder(Seeing())
    logits = torch.randn(50, 10)
    recorder.update([dict(logits=logits)])
    (kept,) = recorder._seen.tensors.values()
    assert kept.data_ptr() == logits.data_ptr()


def test_beyond_the_limit_nothing_is_saved_and_an_earlier_file_goes(tmp_path):
    batch = ([dict(logits=torch.zeros(10, 10))],)  # 400 bytes
    assert saved(tmp_path / "p", batch, batch, limit=800) is not None
    assert saved(tmp_path / "p", batch, batch, limit=799) is None
    assert list(tmp_path.iterdir()) == []
    recorder = PredictionRecorder(Seeing(), limit=799)
    recorder.update(*batch)
    recorder.update(*batch)
    assert recorder._seen is None  # nothing is held either
    recorder.reset()
    recorder.update(*batch)
    assert recorder.save(tmp_path / "p") is not None


@pytest.mark.parametrize("thing", [object(), {1: torch.ones(1)}, torch.ones(1, dtype=torch.complex64), {"a", "b"}])
def test_what_a_file_does_not_hold_ends_remembering_and_not_the_run(tmp_path, thing):
    metric = Seeing()
    assert saved(tmp_path / "p", ([dict(a=1)],), ([dict(a=thing)],), ([dict(a=1)],), metric=metric) is None
    assert len(metric.calls) == 3
    assert list(tmp_path.iterdir()) == []


def test_no_batch_is_no_file_and_no_tensor_is_one(tmp_path):
    assert saved(tmp_path / "p") is None
    assert saved(tmp_path / "p", ([dict(a="only text")],)) is not None
    assert list(read_predictions(tmp_path / "p")) == [([dict(a="only text")], None)]


def test_equal_predictions_are_equal_bytes(tmp_path):
    batch = ([dict(b=torch.ones(3), a=torch.zeros(2), c=torch.arange(4))],)
    assert saved(tmp_path / "p", batch, batch) == saved(tmp_path / "q", batch, batch)


@pytest.mark.parametrize(
    ("header", "said"),
    [
        (None, "no whole file of predictions"),
        ({"other": "1"}, "no whole file of predictions"),
        ({"limbeck": "{"}, "no whole file of predictions"),
        ({"limbeck": "[]"}, "no whole file of predictions"),
        ({"limbeck": '{"version": 2, "batches": []}'}, "predictions of version 2, and this reads 1"),
        ({"limbeck": '{"version": 1, "batches": [{"student": {"tensor": "b"}}]}'}, "no whole file"),
        ({"limbeck": '{"version": 1, "batches": [{"student": {"tensor": "a", "dtype": "code"}}]}'}, "no whole file"),
        ({"limbeck": '{"version": 1, "batches": [{"student": {"set": []}}]}'}, "no whole file"),
        ({"limbeck": '{"version": 1, "batches": [{"student": {"list": [], "dict": {}}}]}'}, "no whole file"),
        ({"limbeck": '{"version": 1, "batches": ' + "[" * 100_000 + "}"}, "no whole file"),
    ],
)
def test_other_files_are_refused(tmp_path, header, said):
    save_file({"a": torch.ones(1)}, tmp_path / "p", metadata=header)
    with pytest.raises(CorruptFile, match=said):
        list(read_predictions(tmp_path / "p"))


def test_a_torn_file_is_refused(tmp_path):
    saved(tmp_path / "p", ([dict(a=torch.ones(9))],))
    (tmp_path / "p").write_bytes((tmp_path / "p").read_bytes()[:-3])
    with pytest.raises(CorruptFile, match="no whole file of predictions"):
        list(read_predictions(tmp_path / "p"))
    with pytest.raises(CorruptFile, match="no whole file of predictions"):
        list(read_predictions(tmp_path / "absent"))


def test_predictions_that_the_metric_does_not_take_are_said(tmp_path):
    for batch in ([dict(logits=torch.ones(2, 3))], ["text"], [dict(logits=torch.ones(2, 3), labels="a")]):
        saved(tmp_path / "p", (batch,))
        with pytest.raises(CorruptFile, match="not what ToyMetric takes"):
            saved_figures({"metric": {"type": "ToyMetric"}}, tmp_path / "p")
    with pytest.raises(ConfigError):
        saved_figures({}, tmp_path / "p")


# --- whole runs ---


def options(folder: Path, name: str = "runs", **kwargs: Any) -> RunOptions:
    return RunOptions(out=folder / name, records=folder / f"{name}-records", threads=1, latency_ms=1.0, **kwargs)


def test_a_run_saves_what_its_figures_are_of_and_changes_none(tmp_path):
    run = toy_run(tmp_path)
    record = execute(run, options(tmp_path))
    file = tmp_path / "runs" / run.id / PREDICTIONS_FILE
    assert record.predictions_sha256 == sha256_file(file)
    assert saved_figures(record.config, file)[0] == record.metrics
    with safe_open(file, framework="pt") as opened:
        header = json.loads(opened.metadata()["limbeck"])
    assert (header["id"], header["config_hash"]) == (run.id, record.config_hash)
    assert sum(len(student[0]["labels"]) for student, _ in read_predictions(file)) == record.data.test_samples
    without = execute(run, options(tmp_path, "without", predictions=False))
    left_out = {"cost", "finished", "predictions_sha256"}
    assert without.model_dump(exclude=left_out) == record.model_dump(exclude=left_out)
    assert without.predictions_sha256 is None
    assert [p.name for p in (tmp_path / "without").rglob("pred*")] == []
    assert "predictions_sha256" not in record_path(tmp_path / "without-records", run.id).read_text()
    again = execute(run, options(tmp_path, predictions=False, resume=False))
    assert again.student_sha256 == record.student_sha256
    assert not file.exists()  # no record names it any more


def test_committed_records_are_written_as_they_were(tmp_path):
    for path in sorted((RESULTS / "lidar-scenes").rglob("seed0.json"))[:5]:
        record = read_record(path)
        write_json(tmp_path / "r.json", record.model_dump(mode="json"))
        assert (tmp_path / "r.json").read_bytes() == path.read_bytes()


def test_of_a_loop_the_last_round_saves(tmp_path):
    whole = RunOptions(out=tmp_path)
    assert [options_of_round(whole, tmp_path, n, 3).predictions for n in range(3)] == [False, False, True]
    none = RunOptions(out=tmp_path, predictions=False)
    assert not options_of_round(none, tmp_path, 2, 3).predictions


def test_predictions_are_copied_and_an_older_file_goes_where_there_are_none(tmp_path):
    (tmp_path / "a").mkdir()
    saved(tmp_path / "a" / PREDICTIONS_FILE, ([dict(a=1)],))
    copy_predictions(tmp_path / "a", tmp_path / "b")
    assert sha256_file(tmp_path / "b" / PREDICTIONS_FILE) == sha256_file(tmp_path / "a" / PREDICTIONS_FILE)
    copy_predictions(tmp_path, tmp_path / "b")
    assert list((tmp_path / "b").iterdir()) == []
