"""A suite's teachers from the zoo: the very weights, and only those of records that hold."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from limbeck.engine.bench import Paths, run_suite
from limbeck.engine.record import record_path
from limbeck.engine.suite import Suite, plan
from limbeck.engine.weights import sha256_file
from limbeck.errors import CorruptFile
from limbeck.zoo import teachers
from limbeck.zoo.teachers import take_teachers
from tests.engine.toys import toy_suite


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Suite, Paths, str, Path]:
    """A suite that was run, and a zoo that has its teacher's weights."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    suite = toy_suite(tmp_path, seeds=[0], chosen=["ToyMatch"])
    before = Paths(tmp_path / "before")
    run_suite(suite, before.out, jobs=1)
    teacher = next(job.id for job in plan(suite) if job.method == "teacher")
    weights = tmp_path / "zoo.safetensors"
    shutil.copyfile(before.runs / teacher / "student.safetensors", weights)
    shelf = {sha256_file(weights): weights}
    monkeypatch.setattr(teachers, "weight_files", lambda *, zoo_dir=None: shelf)
    return suite, before, teacher, weights


def test_students_of_a_released_teacher_are_those_of_one_that_was_trained(made, tmp_path: Path) -> None:
    suite, before, teacher, _ = made
    out = Paths(tmp_path / "after")
    assert take_teachers(plan(suite), out.out, before.records) == [teacher]
    outcome = run_suite(suite, out.out, jobs=1)
    assert teacher in outcome.found
    assert teacher not in outcome.made
    for job in plan(suite):
        one, other = (json.loads(record_path(p.records, job.id).read_text()) for p in (before, out))
        assert one["student_sha256"] == other["student_sha256"], job.id
    assert take_teachers(plan(suite), out.out, before.records) == []


def test_a_record_of_another_config_is_not_taken(made, tmp_path: Path) -> None:
    suite, before, teacher, _ = made
    path = record_path(before.records, teacher)
    record = json.loads(path.read_text())
    path.write_text(json.dumps({**record, "config_hash": "0" * len(record["config_hash"])}))
    with pytest.raises(CorruptFile):
        take_teachers(plan(suite), tmp_path / "after", before.records)
    path.unlink()
    assert take_teachers(plan(suite), tmp_path / "after", before.records) == []
    assert not (tmp_path / "after").exists()


def test_other_weights_under_the_hash_are_refused(made, tmp_path: Path) -> None:
    suite, before, _, weights = made
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    with pytest.raises(CorruptFile, match="sha256"):
        take_teachers(plan(suite), tmp_path / "after", before.records)
    assert not (tmp_path / "after").exists()
