"""Variants lie apart from the methods that are ranked, and each teacher is found under its own name."""

from __future__ import annotations

from pathlib import Path

import pytest

from limbeck.engine.record import record_path
from limbeck.errors import ConfigError, UnknownName
from limbeck.leaderboard.checks import MissingBaseline, MixedRecords
from limbeck.leaderboard.store import load_results
from tests.leaderboard.fabricate import fabricate, linked, suite, vary, write_all
from tests.leaderboard.test_store import refused


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_all(tmp_path / "results", suite(seeds=range(3)))


def test_variants_lie_apart_and_are_found_by_name(folder: Path) -> None:
    write_all(folder, vary("KD", "temperature", [2.0, 8.0]) + vary("FitNet", "taps", [[("Layer1", "layer1")]]))
    group = load_results(folder).groups[0]
    assert list(group.students) == ["plain", "dist", "dkd", "fitnet", "kd"]
    assert list(group.variants) == ["fitnet@taps=[('layer1', 'layer1')]", "kd@temperature=2.0", "kd@temperature=8.0"]
    assert {r.id for r in group.records} == set(load_results(folder).paths)
    for name in ("KD@temperature=2.0", "kd@temperature=2", "KD@temperature=2e0"):
        assert group.method(name)[1].method == "KD@temperature=2.0"
    assert group.method("FitNet@taps=[('Layer1', 'layer1')]")[0].seed == 0
    with pytest.raises(UnknownName, match=r"or 'KD@temperature=2\.0'"):
        group.method("KD@temperature=3.0")
    with pytest.raises(UnknownName) as caught:
        group.method("KDD")
    assert "@" not in str(caught.value)
    with pytest.raises(ConfigError, match="not a Python literal"):
        group.method("KD@temperature=warm")


@pytest.mark.parametrize(
    ("change", "what"),
    [({"data__content_hash": "e" * 64}, "data hash"), ({"initial_hash": "f" * 64}, "initial hash")],
)
def test_variants_keep_the_checks(folder: Path, change: dict[str, object], what: str) -> None:
    write_all(folder, vary("KD", "temperature", [2.0], range(1), **change))
    refused(folder, MixedRecords, "kd@temperature=2.0/seed0", what)


def test_variant_of_the_student_starts_elsewhere_but_once(folder: Path) -> None:
    """Same size, other network: only its model config tells."""
    deep = linked(student=dict(depths=[1, 3]))
    write_all(folder, [fabricate("plain", 0, model=linked(student=dict(depths=[3, 1])))])
    changes = dict(model=deep, initial_hash="f" * 64)
    write_all(folder, vary("KD", "student.depths", [[1, 3]], range(1), **changes))
    assert load_results(folder).groups
    write_all(folder, vary("KD", "weight", [2.0], range(1), **(changes | {"initial_hash": "e" * 64})))
    refused(folder, MixedRecords, "kd@student.depths", "kd@weight", "initial hash")


def test_variant_needs_a_plain_student(folder: Path) -> None:
    write_all(folder, vary("KD", "temperature", [2.0], [7]))
    refused(folder, MissingBaseline, "kd@temperature=2.0/seed7", "plain/seed7")


def test_teachers_of_several_names_are_rows_of_their_own(folder: Path) -> None:
    write_all(folder, [fabricate("teacher-vit", s) for s in range(2)] + [fabricate("teacher-mixer", 0)])
    named = [fabricate("KD-vit", s, teacher_record=f"toy/big-small/teacher-vit/seed{s}") for s in range(2)]
    group = load_results(write_all(folder, named)).groups[0]
    assert {name: sorted(seeds) for name, seeds in group.references.items()} == {
        "teacher": [0],
        "teacher-mixer": [0],
        "teacher-vit": [0, 1],
    }
    assert group.reference == "teacher"
    assert sorted(group.method("Teacher-ViT")) == [0, 1]
    assert not [m for m in group.students if m.startswith("teacher")]
    with pytest.raises(UnknownName, match="did you mean 'teacher-vit'"):
        group.method("teacher-vi")


def test_gap_is_measured_by_the_teacher_that_most_runs_name(tmp_path: Path) -> None:
    vit = fabricate("teacher-vit", 0)
    students = [fabricate(m, s) for m in ("plain", "KD") for s in range(2)]
    others = [fabricate(m, s, teacher_record=vit.id) for m in ("KD-vit", "DKD-vit") for s in range(2)]
    write_all(tmp_path, [fabricate("teacher", 0), vit, *students, *others])
    assert load_results(tmp_path).groups[0].reference == "teacher-vit"
    for record in others[2:]:
        record_path(tmp_path, record.id).unlink()
    assert load_results(tmp_path).groups[0].reference == "teacher"  # of equally many
    variants = vary("KD-vit", "weight", [1.0, 2.0], range(2), teacher_record=vit.id)
    assert load_results(write_all(tmp_path, variants)).groups[0].reference == "teacher"  # variants have no vote


def test_teachers_of_an_ensemble_are_found_in_its_config(tmp_path: Path) -> None:
    first, second = fabricate("teacher", 0, pair="big"), fabricate("teacher-vit", 0, pair="vit")
    model = linked(dict(type="E", teacher=["teacher", "vit"]), teacher=first.id, vit=second.id)
    named = [fabricate("E", s, model=model, teacher_record=first.id) for s in range(2)]
    results = load_results(write_all(tmp_path, [first, second, *named, fabricate("plain", 0), fabricate("plain", 1)]))
    assert [g.pair for g in results] == ["big-small"]
    assert results.groups[0].teachers == [first, second]


def test_teachers_of_one_name_from_two_benchmarks_are_told_apart(folder: Path) -> None:
    other = fabricate("teacher", 0, benchmark="other")
    write_all(folder, [other, *(fabricate("KD", s, teacher_record=other.id) for s in range(3))])
    group = load_results(folder, benchmarks=["toy"]).groups[0]
    assert {name: [r.id for r in seeds.values()] for name, seeds in group.references.items()} == {
        "teacher": ["toy/big-small/teacher/seed0"],
        "teacher (other/big-small)": [other.id],
    }
    assert group.reference == "teacher"
