"""Records: validated, whole, hashed; damaged and failed ones are never read as results; old ones always load."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from limbeck.engine.record import (
    RECORD_VERSION,
    FailureRecord,
    RunRecord,
    config_hash,
    failure_path,
    iter_records,
    read_record,
    record_id,
    record_path,
    write_failure,
    write_record,
)
from limbeck.errors import CorruptFile

DATA = Path(__file__).parent / "data"
CONFIG = {"recipe": {"epochs": 2, "lr": 0.05}, "links": [{"type": "KD", "taps": [["logits", "logits"]]}]}


def record_dict(**changes: Any) -> dict[str, Any]:
    """A record with every field of version 1."""
    value: dict[str, Any] = {
        "record_version": 1,
        "status": "ok",
        "task": "image-classification",
        "benchmark": "demo",
        "benchmark_version": 1,
        "pair": "resnet20-resnet8",
        "method": "KD",
        "seed": 3,
        "data": {
            "name": "digits",
            "content_hash": "0123456789abcdef",
            "split": "test",
            "train_hash": "1123456789abcdef",
            "val_hash": "2123456789abcdef",
            "classes": ["a", "b"],
            "train_samples": 1000,
            "val_samples": 297,
            "test_samples": 500,
        },
        "teacher": {"name": "resnet20", "parameters": 272474, "flops": 81_000_000},
        "student": {"name": "resnet8", "parameters": 78042, "flops": None},
        "config": CONFIG,
        "config_hash": config_hash(CONFIG),
        "metrics": {"top1": 97.25, "nll": 0.125, "ece": 0.03, "agreement": 98.5},
        "val_metrics": {"top1": 98.0},
        "per_class": {"top1": {"zero": 100.0, "one": 94.5}},
        "primary_metric": "top1",
        "higher_is_better": True,
        "recipe": {
            "batch_size": 64,
            "learning_rate_first": 0.05,
            "learning_rate_max": 0.05,
            "learning_rate_last": 0.0001,
            "epochs": 2,
            "steps": 30,
            "optimizer": "SGD",
            "selection": "last",
        },
        "cost": {
            "train_seconds": 12.5,
            "samples_seen": 1920,
            "teacher_forwards": 960,
            "peak_memory_mb": 512.0,
            "student_latency_ms": 0.75,
        },
        "environment": {
            "device": "cpu",
            "cpu": "a processor",
            "threads": 1,
            "concurrent_jobs": 2,
            "world_size": 1,
            "platform": "Linux x86_64",
            "python": "3.11.7",
            "torch": "2.6.0",
            "limbeck": "0.1.0",
            "git_commit": "c" * 40,
            "git_dirty": False,
        },
        "student_sha256": "a" * 64,
        "initial_hash": "b" * 64,
        "teacher_record": "demo/resnet20-resnet8/teacher/seed0",
        "plain_record": "demo/resnet20-resnet8/plain/seed3",
        "assumption": "The temperature is ours.",
        "finished": "2026-01-02T03:04:05+00:00",
    }
    return {**value, **changes}


def failure(**changes: Any) -> FailureRecord:
    value = {
        k: v
        for k, v in record_dict().items()
        if k in ("benchmark", "pair", "method", "seed", "config_hash", "finished")
    }
    return FailureRecord(**{**value, "error": "NonFiniteLoss", "message": "KD.loss_kd = nan at iteration 7", **changes})


def put(folder: Path, value: Any) -> Path:
    path = folder / "r.json"
    path.write_text(json.dumps(value), encoding="utf-8")
    return path


def at(value: dict[str, Any], path: str, new: Any) -> dict[str, Any]:
    """A deep copy of `value` with one entry set."""
    copy = json.loads(json.dumps(value))
    *parents, last = path.split(".")
    node = copy
    for part in parents:
        node = node[part]
    node[last] = new
    return copy


def leaves(value: dict[str, Any], prefix: str = "") -> list[str]:
    found = []
    for key, inner in value.items():
        path = f"{prefix}{key}"
        found += leaves(inner, f"{path}.") if isinstance(inner, dict) and key != "config" else [path]
    return found


# --- round trip ---


def test_written_record_is_read_back_equal(tmp_path):
    record = RunRecord.model_validate(record_dict())
    path = write_record(tmp_path, record)
    assert path == tmp_path / "demo/resnet20-resnet8/kd/seed3.json"
    assert read_record(path) == record
    assert json.loads(path.read_text()) == record_dict()


def test_writing_twice_gives_the_same_bytes(tmp_path):
    record = RunRecord.model_validate(record_dict())
    first = write_record(tmp_path, record).read_bytes()
    assert write_record(tmp_path, read_record(record_path(tmp_path, record.id))).read_bytes() == first


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_figures_survive_json_exactly(value):
    record = RunRecord.model_validate(record_dict(metrics={"top1": value}))
    again = RunRecord.model_validate(json.loads(json.dumps(record.model_dump(mode="json"))))
    assert again.value == record.value == value


def test_id_and_path_come_from_benchmark_pair_method_and_seed(tmp_path):
    record = RunRecord.model_validate(record_dict())
    assert record.id == record_id("demo", "resnet20-resnet8", "KD", 3) == "demo/resnet20-resnet8/kd/seed3"
    assert record_path(tmp_path, record.id) == tmp_path / "demo" / "resnet20-resnet8" / "kd" / "seed3.json"
    assert failure_path(tmp_path, record.id) == tmp_path / "demo" / "resnet20-resnet8" / "kd" / "seed3.failed.json"


@pytest.mark.parametrize(
    ("method", "folder"),
    [
        ("KD", "kd"),
        ("KD+LS", "kd+ls"),
        ("MEALV2-off", "mealv2-off"),
        ("KD@temperature=2.0", "kd@temperature=2.0"),
        ("KD@weight=1e-05", "kd@weight=1e-05"),
        ("MixupKD@temperature='std'", "mixupkd@temperature=-std"),
        ("KD@student.depths=[1, 3, 5]", "kd@student.depths=-1-3-5"),
        ("FitNet@taps=[['layer1', 'layer1']]", "fitnet@taps=-layer1-layer1"),
        ("A@x='../../etc/passwd'", "a@x=-..-..-etc-passwd"),
        ("A@x='a\\b:c*?<>|\"'", "a@x=-a-b-c"),
        ("A@x='Größe 2'", "a@x=-gr-e-2"),
    ],
)
def test_id_of_any_method_is_one_safe_folder(tmp_path, method, folder):
    record = RunRecord.model_validate(record_dict(method=method))
    assert record.id == f"demo/resnet20-resnet8/{folder}/seed3"
    path = write_record(tmp_path, record)
    assert path.resolve().parent == tmp_path.resolve() / "demo" / "resnet20-resnet8" / folder
    assert read_record(path).method == method


@given(st.text())
def test_folder_of_a_method_never_leaves_its_pair(method):
    parts = record_id("demo", "pair", f"KD@x={method!r}", 0).split("/")
    assert len(parts) == 4
    assert parts[2].startswith("kd@x=")
    assert set(parts[2]) <= set("abcdefghijklmnopqrstuvwxyz0123456789.@=+_-")


def test_value_is_the_primary_metric():
    assert RunRecord.model_validate(record_dict(primary_metric="nll")).value == 0.125


def test_record_cannot_be_changed():
    record = RunRecord.model_validate(record_dict())
    with pytest.raises(ValueError, match="frozen"):
        record.seed = 4


# --- the schema of DESIGN.md ---


@pytest.mark.parametrize(
    "field",
    [
        *("task", "benchmark", "data.name", "data.content_hash", "data.split", "teacher", "student", "method"),
        *("config", "config_hash", "seed", "environment.limbeck", "environment.git_commit", "environment.git_dirty"),
        *("metrics", "per_class", "recipe.selection"),
        *("student.parameters", "student.flops", "cost.student_latency_ms", "cost.train_seconds"),
        *("cost.peak_memory_mb", "cost.samples_seen", "cost.teacher_forwards"),
        *("environment.cpu", "environment.device", "environment.torch", "environment.threads"),
        *("student_sha256", "initial_hash", "teacher_record", "plain_record", "status", "record_version"),
        *("recipe.batch_size", "recipe.learning_rate_first", "recipe.learning_rate_max"),  # guard 6
    ],
)
def test_record_has_the_field(field):
    node: Any = RunRecord.model_validate(record_dict()).model_dump(mode="json")
    for part in field.split("."):
        assert part in node
        node = node[part]


def test_sample_has_every_field_and_no_other():
    assert leaves(RunRecord.model_validate(record_dict()).model_dump(mode="json")) == leaves(record_dict())


@pytest.mark.parametrize("status", ["ok", "partial", "failed", "unreliable", "superseded"])
def test_status_of_the_design_is_taken(status):
    assert RunRecord.model_validate(record_dict(status=status)).status == status


@pytest.mark.parametrize("selection", ["last", "best_val", "best_test"])
def test_selection_of_the_design_is_taken(selection):
    assert RunRecord.model_validate(at(record_dict(), "recipe.selection", selection)).recipe.selection == selection


# --- refused at load ---


@pytest.mark.parametrize(
    "where", ["extra", "data.extra", "student.extra", "recipe.extra", "cost.extra", "environment.extra"]
)
def test_extra_key_is_refused_and_named(tmp_path, where):
    with pytest.raises(CorruptFile, match=rf"r\.json: {where}: Extra inputs"):
        read_record(put(tmp_path, at(record_dict(), where, 1)))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize(
    "where",
    [
        "metrics.top1",
        "val_metrics.top1",
        "per_class.top1.zero",
        "recipe.learning_rate_max",
        "cost.train_seconds",
        "cost.student_latency_ms",
    ],
)
def test_non_finite_figure_is_refused_and_named(tmp_path, where, bad):
    with pytest.raises(CorruptFile, match=rf"{where}: .*finite"):
        read_record(put(tmp_path, at(record_dict(), where, bad)))


@pytest.mark.parametrize(
    ("where", "bad"),
    [
        ("task", "image classification"),
        ("status", "fine"),
        ("recipe.selection", "best"),
        ("student_sha256", "a" * 63),
        ("initial_hash", "G" * 64),
        ("data.content_hash", "short"),
        ("metrics.top1", "very good"),
        ("record_version", 2),
        ("seed", None),
        ("config", []),
    ],
)
def test_value_outside_the_schema_is_refused_and_named(tmp_path, where, bad):
    with pytest.raises(CorruptFile, match=where):
        read_record(put(tmp_path, at(record_dict(), where, bad)))


@pytest.mark.parametrize(
    "field", ["task", "data", "student", "config", "metrics", "recipe", "cost", "environment", "student_sha256"]
)
def test_missing_field_is_refused_and_named(tmp_path, field):
    value = record_dict()
    del value[field]
    with pytest.raises(CorruptFile, match=f"{field}: Field required"):
        read_record(put(tmp_path, value))


def test_record_without_its_primary_metric_is_refused(tmp_path):
    with pytest.raises(CorruptFile, match="no primary metric 'mAP' among"):
        read_record(put(tmp_path, record_dict(primary_metric="mAP")))


def test_config_that_was_changed_by_hand_is_refused_with_both_hashes(tmp_path):
    changed = at(record_dict(), "config.recipe.epochs", 3)
    with pytest.raises(CorruptFile) as caught:
        read_record(put(tmp_path, changed))
    assert config_hash(changed["config"])[:12] in str(caught.value)
    assert record_dict()["config_hash"][:12] in str(caught.value)
    assert "r.json" in str(caught.value)


def test_config_hash_ignores_the_order_of_keys(tmp_path):
    value = record_dict(config=dict(reversed(CONFIG.items())))
    assert read_record(put(tmp_path, value)).config_hash == config_hash(CONFIG)


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99])
def test_truncated_record_is_named(tmp_path, share):
    path = write_record(tmp_path, RunRecord.model_validate(record_dict()))
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(CorruptFile, match=r"seed3\.json: not a whole JSON record"):
        read_record(path)


@pytest.mark.parametrize("content", [b"\xff\xfe{}", b"[1, 2]", b"null", b'"text"', b"{}"])
def test_file_of_another_kind_is_named(tmp_path, content):
    (tmp_path / "r.json").write_bytes(content)
    with pytest.raises(CorruptFile, match=r"r\.json"):
        read_record(tmp_path / "r.json")


def test_absent_record_is_named(tmp_path):
    with pytest.raises(CorruptFile, match=r"absent\.json: cannot be read \(No such file"):
        read_record(tmp_path / "absent.json")


# --- failure records ---


def test_failure_record_lies_beside_and_is_never_read_as_a_record(tmp_path):
    path = write_failure(tmp_path, failure())
    assert path == failure_path(tmp_path, record_id("demo", "resnet20-resnet8", "KD", 3))
    assert list(iter_records(tmp_path)) == []
    with pytest.raises(CorruptFile):
        read_record(path)
    renamed = path.rename(path.with_name("seed3.json"))
    with pytest.raises(CorruptFile):
        read_record(renamed)


def test_failure_record_says_what_went_wrong(tmp_path):
    found = FailureRecord.model_validate(json.loads(write_failure(tmp_path, failure()).read_text()))
    assert found == failure()
    assert found.status == "failed"


def test_record_is_no_failure_record():
    with pytest.raises(ValueError, match="Extra inputs"):
        FailureRecord.model_validate(record_dict(status="failed"))


def test_finished_run_drops_its_own_failure_record_alone(tmp_path):
    other = write_failure(tmp_path, failure(seed=4))
    mine = write_failure(tmp_path, failure())
    write_record(tmp_path, RunRecord.model_validate(record_dict()))
    assert not mine.exists()
    assert other.exists()


# --- folders ---


def test_iter_gives_every_record_by_path_and_skips_what_is_half_written(tmp_path):
    for seed in (2, 0, 1):
        write_record(tmp_path, RunRecord.model_validate(record_dict(seed=seed)))
    write_failure(tmp_path, failure(seed=5))
    (tmp_path / "demo" / ".seed9.json.abc.tmp").write_text("{")
    (tmp_path / "demo" / ".hidden.json").write_text("{")
    assert [r.seed for _, r in iter_records(tmp_path)] == [0, 1, 2]
    assert all(path == record_path(tmp_path, r.id) for path, r in iter_records(tmp_path))


def test_iter_stops_at_a_damaged_record(tmp_path):
    path = write_record(tmp_path, RunRecord.model_validate(record_dict()))
    path.write_text("{")
    with pytest.raises(CorruptFile, match=r"seed3\.json"):
        list(iter_records(tmp_path))


def test_iter_of_an_absent_folder_is_empty(tmp_path):
    assert list(iter_records(tmp_path / "absent")) == []


# --- old records ---


def test_record_of_version_1_loads():
    record = read_record(DATA / "record_v1.json")  # from before records named classes and every split's hash
    value = record_dict()
    del value["assumption"]
    for key in ("train_hash", "val_hash", "classes"):
        del value["data"][key]
    assert record == RunRecord.model_validate(value)
    assert record.record_version == RECORD_VERSION == 1


def test_record_of_version_1_without_what_has_a_default_loads(tmp_path):
    value = record_dict()
    for key in ("benchmark_version", "val_metrics", "per_class", "teacher", "teacher_record", "plain_record", "status"):
        del value[key]
    del value["assumption"]
    for part, key in (
        ("cost", "student_latency_ms"),
        ("environment", "git_commit"),
        ("student", "flops"),
        ("data", "split"),
    ):
        del value[part][key]
    record = read_record(put(tmp_path, value))
    assert (record.status, record.data.split, record.teacher, record.per_class) == ("ok", "test", None, {})
    assert record.assumption is None
