"""Loading, grouping, and each refusal."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from limbeck.engine.record import RunRecord, config_hash, record_path, write_failure
from limbeck.errors import CorruptFile, UnknownName, UserError
from limbeck.leaderboard.checks import (
    DuplicateRecord,
    MisplacedRecord,
    MissingBaseline,
    MixedRecords,
    NoResults,
)
from limbeck.leaderboard.store import load_results
from tests.leaderboard.fabricate import ARCHIVE, damage, fabricate, failure, suite, with_values, write_all


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_all(tmp_path / "results", suite(seeds=range(3)))


def refused(folder: Path, kind: type[UserError], *parts: str) -> None:
    with pytest.raises(kind) as caught:
        load_results(folder)
    text = str(caught.value)
    assert all(part in text for part in parts), text
    assert "\n" not in text


def test_load_groups_by_benchmark_version_and_pair(folder: Path) -> None:
    write_all(folder, suite(("KD",), range(2), pair="mid-small"))
    write_all(folder, suite(("KD",), range(2), benchmark="other", benchmark_version=3))
    results = load_results(folder)
    assert [(g.benchmark, g.version, g.pair) for g in results] == [
        ("other", 3, "big-small"),
        ("toy", 1, "big-small"),
        ("toy", 1, "mid-small"),
    ]
    group = results.groups[1]
    assert list(group.students) == ["plain", "dist", "dkd", "fitnet", "kd"]
    assert sorted(group.method("KD")) == [0, 1, 2]
    assert [t.id for t in group.teachers] == ["toy/big-small/teacher/seed0"]
    assert not group.warnings


def test_load_filters_benchmarks(folder: Path) -> None:
    write_all(folder, suite(("KD",), range(2), benchmark="other"))
    assert [g.benchmark for g in load_results(folder, benchmarks=["other"])] == ["other"]
    with pytest.raises(UnknownName, match="did you mean 'other'"):
        load_results(folder, benchmarks=["othr"])


def test_filter_leaves_a_broken_neighbour_alone(folder: Path) -> None:
    write_all(folder, [fabricate("KD", 0, benchmark="other")])
    assert load_results(folder, benchmarks=["toy"]).groups
    refused(folder, MissingBaseline, "other/big-small/kd/seed0")


def test_benchmark_gives_highest_version(tmp_path: Path) -> None:
    old = suite(("KD",), range(2), pair="a-b")
    new = suite(("KD",), range(2), pair="c-d", benchmark_version=2, data__content_hash="e" * 64)
    results = load_results(write_all(tmp_path, [*old, *new]))
    assert [g.pair for g in results.benchmark("toy")] == ["c-d"]
    with pytest.raises(UnknownName):
        results.benchmark("tyo")


def test_absent_empty_and_spent_folders_are_refused(tmp_path: Path) -> None:
    refused(tmp_path / "absent", NoResults, "absent", "no such folder")
    refused(tmp_path, NoResults, "holds no record")
    write_all(tmp_path, [fabricate("plain", 0, status="superseded")])
    refused(tmp_path, NoResults, "superseded")


def test_superseded_records_are_left_out(folder: Path) -> None:
    write_all(folder, [fabricate("KD", 2, status="superseded", metrics={"top1": 1.0})])
    assert sorted(load_results(folder).groups[0].method("kd")) == [0, 1]


def test_unreliable_is_flagged(folder: Path) -> None:
    write_all(folder, [fabricate("KD", 1, status="unreliable")])
    group = load_results(folder).groups[0]
    assert sorted(group.method("kd")) == [0, 1, 2]
    assert group.warnings == ["KD: seed 1 unreliable, shown but not ranked"]


def test_non_finite_value_is_refused(folder: Path) -> None:
    path = record_path(folder, "toy/big-small/kd/seed1")
    raw = json.loads(path.read_text())
    raw["metrics"]["top1"] = float("nan")
    path.write_text(json.dumps(raw))
    refused(folder, CorruptFile, str(path), "finite")


def test_torn_and_edited_records_are_refused(folder: Path) -> None:
    path = record_path(folder, "toy/big-small/kd/seed1")
    whole = path.read_text()
    damage(path, lambda text: text[: len(text) // 2])
    refused(folder, CorruptFile, str(path))
    path.write_text(whole.replace('"fixture": true', '"fixture": false'))
    refused(folder, CorruptFile, str(path), "sha256")


def test_record_without_its_primary_metric_is_refused(folder: Path) -> None:
    damage(record_path(folder, "toy/big-small/kd/seed1"), lambda text: text.replace('"top1":', '"top-1":'))
    refused(folder, CorruptFile, "kd/seed1.json", "top1")


def test_missing_baseline_is_refused(tmp_path: Path) -> None:
    write_all(tmp_path, [fabricate("plain", 0), fabricate("KD", 0), fabricate("DKD", 1), fabricate("DKD", 2)])
    refused(tmp_path, MissingBaseline, "toy/big-small/dkd/seed1", "toy/big-small/plain/seed1")


def test_partly_missing_baseline_is_a_warning(tmp_path: Path) -> None:
    write_all(tmp_path, [fabricate("plain", 0), fabricate("plain", 5), fabricate("KD", 0), fabricate("KD", 1)])
    warnings = load_results(tmp_path).groups[0].warnings
    assert "KD: no plain student on seed 1, left out of the paired gain" in warnings
    assert "KD: no record on seed 5, which the plain student has" in warnings


def test_missing_teacher_is_a_warning(tmp_path: Path) -> None:
    write_all(tmp_path, suite(("KD",), range(2))[1:])
    group = load_results(tmp_path).groups[0]
    assert group.teachers == []
    assert any("no teacher record" in w for w in group.warnings)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"recipe__selection": "best_val"}, "selection"),
        ({"data__content_hash": "e" * 64}, "data hash"),
        ({"data__split": "val"}, "data hash"),
        ({"primary_metric": "nll"}, "primary metric"),
        ({"higher_is_better": False}, "primary metric"),
        ({"initial_hash": "f" * 64}, "initial hash"),
    ],
)
def test_mixed_records_are_refused(folder: Path, change: dict[str, object], what: str) -> None:
    write_all(folder, [fabricate("KD", 1, **change)])
    refused(folder, MixedRecords, "toy/big-small/kd/seed1", "toy/big-small/", what)


def test_mixed_data_over_pairs_of_one_benchmark_is_refused(folder: Path) -> None:
    write_all(folder, suite(("KD",), range(2), pair="mid-small", data__content_hash="e" * 64))
    refused(folder, MixedRecords, "big-small", "mid-small", "data hash")


def test_training_data_are_one_for_all_or_for_all_of_one_draw_of_labels(tmp_path: Path) -> None:
    def records(drawn: bool, hashes: str) -> list[RunRecord]:
        found = []
        for method in ("plain", "KD"):
            for seed, letter in enumerate(hashes):
                record = fabricate(method, seed, data__train_hash=letter * 64)
                data = {"train": {"type": "PartlyLabelled", "shots": 4, **({"shots_seed": seed} if drawn else {})}}
                config = {**record.config, "data": data}
                found.append(record.model_copy(update={"config": config, "config_hash": config_hash(config)}))
        return found

    write_all(tmp_path / "drawn", records(True, "ab"))
    assert load_results(tmp_path / "drawn").groups  # every seed labels other images
    write_all(tmp_path / "fixed", records(False, "ab"))
    refused(tmp_path / "fixed", MixedRecords, "seed0", "seed1", "training data hash")
    write_all(tmp_path / "drawn", [records(True, "ac")[3]])
    refused(tmp_path / "drawn", MixedRecords, "plain/seed1", "kd/seed1", "training data hash")


def test_a_further_test_set_is_one_for_all_that_have_it(folder: Path) -> None:
    with_hash = [{"street": {"content_hash": letter * 64, "samples": 3}} for letter in "ab"]
    write_all(folder, [fabricate("KD", 1, data__also=with_hash[0])])
    assert load_results(folder).groups  # others lack it
    write_all(folder, [fabricate("KD", 2, data__also=with_hash[1]), fabricate("plain", 2)])
    refused(folder, MixedRecords, "kd/seed1", "kd/seed2", "data hash of street")


def test_teacher_may_have_its_own_selection(folder: Path) -> None:
    write_all(folder, [fabricate("teacher", 0, recipe__selection="best_val")])
    assert load_results(folder).groups


def test_selection_on_the_test_split_is_refused(tmp_path: Path) -> None:
    write_all(tmp_path, suite(("KD",), range(2), recipe__selection="best_test"))
    refused(tmp_path, MixedRecords, "test split")


def test_other_seeds_may_start_elsewhere(folder: Path) -> None:
    hashes = {r.seed: r.initial_hash for r in load_results(folder).groups[0].method("plain").values()}
    assert len(set(hashes.values())) == 3


def test_misplaced_record_is_refused(folder: Path) -> None:
    path = record_path(folder, "toy/big-small/kd/seed1")
    path.rename(path.with_name("seed7.json"))
    refused(folder, MisplacedRecord, "seed7.json", "toy/big-small/kd/seed1")


def test_duplicate_record_is_refused(folder: Path) -> None:
    path = record_path(folder, "toy/big-small/kd/seed1")
    path.with_name("seed7.json").write_text(path.read_text())
    refused(folder, DuplicateRecord, "seed1.json", "seed7.json")


def test_teacher_of_another_pair_is_found(tmp_path: Path) -> None:
    teacher = fabricate("teacher", 0, pair="big")
    named = [fabricate("KD", s, teacher_record=teacher.id) for s in range(2)]
    results = load_results(write_all(tmp_path, [teacher, *named, fabricate("plain", 0), fabricate("plain", 1)]))
    assert [g.pair for g in results] == ["big-small"]  # the teacher alone is no group of its own
    assert results.groups[0].teachers == [teacher]


def test_student_of_another_pair_that_teaches_is_in_the_teachers_row(tmp_path: Path) -> None:
    assistant = fabricate("KD", 0, pair="big")
    named = [fabricate("KD", s, teacher_record=assistant.id) for s in range(2)]
    plain = [fabricate("plain", 0), fabricate("plain", 1), fabricate("plain", 0, pair="big")]
    results = load_results(write_all(tmp_path, [assistant, *named, *plain]))
    assert [g.pair for g in results] == ["big", "big-small"]
    group = results.groups[1]
    assert group.references == {"teacher": {0: assistant}}
    assert group.reference == "teacher"
    assert set(group.students) == {"plain", "kd"}
    first = fabricate("teacher", 0, pair="big")
    group.teachers.append(first)
    assert group.references == {"teacher (toy/big/kd)": {0: assistant}, "teacher (toy/big)": {0: first}}


def test_failures_are_told(folder: Path) -> None:
    write_failure(folder, failure("KD", 9))
    write_failure(folder, failure("KD", 0))  # has a record by now
    group = load_results(folder).groups[0]
    assert [f.seed for f in group.failures] == [9]
    assert "KD: seed 9 failed (NonFiniteLoss)" in group.warnings
    record_path(folder, "toy/big-small/kd/seed8.failed").write_text("{")
    refused(folder, CorruptFile, "seed8.failed.json")


def test_unknown_method_has_near_names(folder: Path) -> None:
    group = load_results(folder).groups[0]
    with pytest.raises(UnknownName, match="'FitNet'"):
        group.method("fitnt")


def test_old_records_load() -> None:
    results = load_results(ARCHIVE)
    assert [g.name for g in results] == ["fixture/big-small"]
    assert {n: sorted(s) for n, s in results.groups[0].students.items()} == {
        "plain": [0, 1, 2],
        "dkd": [0, 1],
        "fitnet": [0, 1],
        "kd": [0, 1],
    }
    assert all(json.loads(p.read_text())["record_version"] == 1 for p in ARCHIVE.rglob("*.json"))


def test_given_values_make_records(tmp_path: Path) -> None:
    write_all(tmp_path, with_values("plain", [1.0, 2.0]))
    assert [r.value for r in load_results(tmp_path).groups[0].method("plain").values()] == [1.0, 2.0]
