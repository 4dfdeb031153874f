"""Where weights come from: paths, runs and the zoo; and which teacher a single run takes."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import pytest

from limbeck.engine import sources
from limbeck.engine.record import RunRecord, write_record
from limbeck.engine.single import single_run
from limbeck.engine.sources import resolve_weights
from limbeck.errors import ConfigError, CorruptFile, UnknownName
from tests.engine.test_record import record_dict
from tests.engine.toys import toy_pair


def test_path_is_taken_as_it_is():
    assert resolve_weights("some/teacher.safetensors") == Path("some/teacher.safetensors")
    assert resolve_weights("/abs/teacher.safetensors", runs="runs") == Path("/abs/teacher.safetensors")


def test_run_lies_below_the_folder_of_runs():
    expected = Path("out/runs/demo/a-b/teacher/seed0/student.safetensors")
    assert resolve_weights("run://demo/a-b/teacher/seed0", "out/runs") == expected


def test_run_without_a_folder_of_runs_says_what_to_do():
    with pytest.raises(
        ConfigError, match=r"run://demo/teacher names a run, but no folder of runs is given; .*name a path"
    ):
        resolve_weights("run://demo/teacher")


@pytest.mark.parametrize(("weights", "meant"), [("zoos://kd", "zoo"), ("runs://kd", "run")])
def test_unknown_scheme_is_answered_with_near_names(weights, meant):
    with pytest.raises(UnknownName, match=f"unknown weights scheme .* in '{weights}'; did you mean '{meant}'"):
        resolve_weights(weights, "runs")


def test_foreign_scheme_lists_what_there_is():
    with pytest.raises(UnknownName, match=r"'https'.*(run.*zoo|zoo.*run)"):
        resolve_weights("https://example.org/w.safetensors")


def test_other_schemes_are_imported_only_when_named(monkeypatch):
    module = ModuleType("a_zoo")
    module.find = lambda name: f"zoo/{name}.safetensors"
    monkeypatch.setitem(sources.SCHEMES, "zoo", "a_zoo:find")
    with pytest.raises(ModuleNotFoundError, match="a_zoo"):
        resolve_weights("zoo://kd")
    monkeypatch.setitem(sys.modules, "a_zoo", module)
    assert resolve_weights("zoo://kd") == Path("zoo/kd.safetensors")


# --- the teacher of a single run ---


def teacher_record(folder: Path, seed: int, **changes) -> RunRecord:
    identity = {"benchmark": "toy", "pair": "toy4-toy2", "method": "teacher", "seed": seed}
    record = RunRecord.model_validate(record_dict(**identity, **changes))
    write_record(folder / "records", record)
    return record


def test_single_run_takes_the_teacher_with_the_lowest_seed(tmp_path):
    for seed in (10, 2, 3):
        teacher_record(tmp_path, seed, student_sha256=f"{seed:064d}", val_metrics={"top1": 80.0 + seed})
    member = single_run(toy_pair(), "ToyMatch", 5, tmp_path).model["members"]["teacher"]
    assert member["weights"] == "run://toy/toy4-toy2/teacher/seed2"
    assert (member["sha256"], member["expected"]) == (f"{2:064d}", {"top1": 82.0})


def test_single_run_without_a_teacher_says_how_to_get_one(tmp_path):
    with pytest.raises(
        ConfigError, match=r"'ToyMatch' needs a teacher and .* has none; train it first \(--method teacher\)"
    ):
        single_run(toy_pair(), "ToyMatch", 0, tmp_path)


def test_single_run_takes_the_teacher_that_is_named(tmp_path):
    teacher_record(tmp_path, 0)
    member = single_run(toy_pair(), "ToyMatch", 0, tmp_path, "mine.safetensors").model["members"]["teacher"]
    assert (member["weights"], member["expected"]) == ("mine.safetensors", None)


@pytest.mark.parametrize("method", ["teacher", "plain"])
def test_single_run_of_teacher_and_plain_needs_none(tmp_path, method):
    assert "teacher" not in single_run(toy_pair(), method, 0, tmp_path).model["members"]


def test_single_run_does_not_take_a_failed_teacher(tmp_path):
    path = tmp_path / "records" / "toy" / "toy4-toy2" / "teacher" / "seed0.failed.json"
    path.parent.mkdir(parents=True)
    path.write_text("{}")
    with pytest.raises(ConfigError, match="has none"):
        single_run(toy_pair(), "ToyMatch", 0, tmp_path)


def test_single_run_names_a_damaged_teacher_record(tmp_path):
    record = teacher_record(tmp_path, 0)
    (tmp_path / "records" / f"{record.id}.json").write_text("{")
    with pytest.raises(CorruptFile, match=r"seed0\.json"):
        single_run(toy_pair(), "ToyMatch", 0, tmp_path)
