"""Records of several places are taken together: each once, and two that contradict each other are both named."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from limbeck.engine.record import record_path, write_failure
from limbeck.errors import ConfigError, OutputError, UnknownName
from limbeck.leaderboard.audit import audit, named_files
from limbeck.leaderboard.checks import DuplicateRecord, MisplacedRecord, NoResults, check_apart
from limbeck.leaderboard.places import find_record, folders_of
from limbeck.leaderboard.store import load_results
from limbeck.leaderboard.table import build_tables, to_json
from tests.leaderboard.fabricate import fabricate, failure, suite, write_all

KD = "toy/big-small/kd/seed1"


@pytest.fixture
def ours(tmp_path: Path) -> Path:
    return write_all(tmp_path / "ours", suite(("KD",), range(3)))


@pytest.fixture
def theirs(tmp_path: Path) -> Path:
    """Somebody else's runs: another method of our pair, beside a teacher and plain students that are ours."""
    return write_all(tmp_path / "theirs", suite(("DKD",), range(3)))


def tables(*folders: Path) -> list[dict[str, Any]]:
    return [to_json(table) for table in build_tables(load_results(folders))]


def test_two_places_are_as_one_folder(ours: Path, theirs: Path, tmp_path: Path) -> None:
    write_all(theirs, suite(("KD",), range(2), benchmark="a-theirs"))
    shutil.copytree(ours, tmp_path / "both")
    shutil.copytree(theirs, tmp_path / "both", dirs_exist_ok=True)
    together, both = load_results([ours, theirs]), load_results(tmp_path / "both")
    assert tables(ours, theirs) == tables(theirs, ours) == tables(tmp_path / "both")
    assert together.index.drop("mtime_ns", "ctime_ns", "folder").equals(
        both.index.drop("mtime_ns", "ctime_ns", "folder")
    )
    assert together.where == f"{ours} and {theirs}"
    assert together.paths[KD] == record_path(ours, KD)
    assert together.paths["toy/big-small/dkd/seed1"] == record_path(theirs, "toy/big-small/dkd/seed1")
    (toy,) = together.benchmark("toy")
    assert [r.method for r in (toy.method("KD")[1], toy.method("DKD")[1])] == ["KD", "DKD"]  # read from both
    with pytest.raises(UnknownName, match=r"ours and .*theirs"):
        together.benchmark("tyo")


def test_one_place_is_as_before_and_named_twice_it_is_one(ours: Path) -> None:
    assert folders_of(str(ours)) == folders_of(ours) == folders_of([ours, ours / ".." / "ours"]) == (ours,)
    assert tables(ours) == [to_json(table) for table in build_tables(load_results(ours))]
    with pytest.raises(ConfigError, match="--results"):
        folders_of([])


def test_the_same_record_laid_out_otherwise_is_the_same(ours: Path, theirs: Path) -> None:
    path = record_path(theirs, KD)
    path.parent.mkdir(parents=True)
    values = json.loads(record_path(ours, KD).read_text())
    path.write_text(json.dumps(dict(reversed(values.items()))))
    assert sorted(load_results([ours, theirs]).groups[0].method("KD")) == [0, 1, 2]


@pytest.mark.parametrize("status", ["ok", "superseded"])
def test_two_records_of_one_run_name_both_files(ours: Path, theirs: Path, status: str) -> None:
    write_all(theirs, [fabricate("KD", 1, status=status, metrics={"top1": 99.0})])
    for look in (load_results, lambda folders: named_files(folders, None)):
        with pytest.raises(DuplicateRecord) as caught:
            look([ours, theirs])
        text = str(caught.value)
        assert text.startswith(f"{record_path(ours, KD)} and {record_path(theirs, KD)} are different records")
        assert "\n" not in text


def test_each_place_must_hold_records_in_their_places(ours: Path, theirs: Path, tmp_path: Path) -> None:
    with pytest.raises(NoResults, match="absent: no such folder"):
        load_results([ours, tmp_path / "absent"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(NoResults, match="empty: holds no record"):
        load_results([ours, tmp_path / "empty"])
    path = record_path(theirs, "toy/big-small/dkd/seed1")
    path.rename(path.with_name("seed9.json"))
    with pytest.raises(MisplacedRecord, match=r"theirs.*seed9"):
        load_results([ours, theirs])


def test_a_failure_is_told_once_and_not_where_another_place_has_the_run(ours: Path, theirs: Path) -> None:
    for folder in (ours, theirs):
        write_failure(folder, failure("FitNet", 0))
    write_failure(theirs, failure("KD", 1))
    (group,) = load_results([ours, theirs])
    assert [(f.method, f.seed) for f in group.failures] == [("FitNet", 0)]


def test_a_page_goes_into_none_of_the_places(ours: Path, theirs: Path, tmp_path: Path) -> None:
    check_apart(tmp_path / "page", [ours, theirs])
    for out in (theirs, theirs / "page"):
        with pytest.raises(OutputError, match=rf"{out}: lies in the folder of records {theirs},"):
            check_apart(out, [ours, theirs])


def test_verify_looks_at_each_record_once_and_finds_teachers_elsewhere(ours: Path, theirs: Path) -> None:
    named = {"model": {"members": {"teacher": {"weights": "run://toy/big-small/teacher/seed0", "sha256": "0" * 64}}}}
    record_path(theirs, "toy/big-small/teacher/seed0").unlink()
    write_all(theirs, [fabricate("DIST", 0, config=named)])
    files = named_files([ours, theirs], None)
    assert len(files) == len({f.relative_to(ours if f.is_relative_to(ours) else theirs) for f in files}) == 11
    assert named_files([ours, theirs], ["toy/big-small/dkd/seed1", "toy/big-small/plain"]) == [
        record_path(theirs, "toy/big-small/dkd/seed1"),
        *(record_path(ours, f"toy/big-small/plain/seed{seed}") for seed in range(3)),
    ]
    with pytest.raises(UnknownName, match="did you mean 'toy'"):
        named_files([ours, theirs], ["toi"])
    assert find_record([ours, theirs], "../ours/none") is None

    def judged(*folders: Path) -> dict[str, str]:
        found = audit(files, lambda config, path: {}, {}, data_hash=lambda config: None, results=folders)
        return {one.id: one.text for one in found}

    said = judged(ours, theirs).pop("toy/big-small/dist/seed0")
    assert "its teacher's weights have sha256 000000000000" in said
    assert str(record_path(ours, "toy/big-small/teacher/seed0")) in said
    assert judged(theirs)["toy/big-small/dist/seed0"] == "no weights"  # the teacher's record is not among them
