"""Whoever changes a record, its weights or the data is named; everything else still holds."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from limbeck.engine.evaluate import evaluate_weights
from limbeck.engine.record import config_hash, record_path
from limbeck.errors import ConfigError, DataMissing, UnknownName
from limbeck.leaderboard.audit import audit, content_hashes, counts, named_files
from limbeck.leaderboard.checks import NoResults
from tests.engine.toys import ToyData
from tests.leaderboard.toy_runs import edit

HOLDS = "holds (weights, predictions)"
MATCH, TEACHER = "toy/toy4-toy2/toymatch/seed1", "toy/toy4-toy2/teacher/seed0"


def verdicts(toys: SimpleNamespace, *names: str) -> dict[str, str]:
    files = named_files(toys.records, list(names) or None)
    found = audit(files, evaluate_weights, {}, data_hash=content_hashes(), results=toys.records, runs=toys.runs)
    return {one.id: one.text for one in found}


def test_untouched_runs_hold(toys: SimpleNamespace) -> None:
    found = verdicts(toys)
    assert set(found.values()) == {HOLDS}
    assert len(found) == 7


def test_a_changed_figure_is_off_and_only_it(toys: SimpleNamespace) -> None:
    path = record_path(toys.records, MATCH)
    value = json.loads(path.read_text())["metrics"]["top1"]
    edit(path, metrics__top1=value + 5)
    found = verdicts(toys)
    assert found.pop(MATCH) == "off by -5 top1"
    assert set(found.values()) == {HOLDS}


def test_a_changed_config_is_named_and_the_rest_is_looked_at(toys: SimpleNamespace) -> None:
    path = record_path(toys.records, MATCH)
    edit(path, config__recipe__epochs=40)
    found = verdicts(toys)
    said = found.pop(str(path))
    assert said.startswith("changed: record: ")
    assert "the config's sha256 is" in said
    assert set(found.values()) == {HOLDS}
    assert len(found) == 6


def test_a_config_changed_with_its_hash_contradicts_the_teacher(toys: SimpleNamespace) -> None:
    path = record_path(toys.records, MATCH)
    config = json.loads(path.read_text())["config"]
    config["model"]["members"]["teacher"]["sha256"] = "0" * 64
    edit(path, config=config, config_hash=config_hash(config))
    assert "its teacher's weights have sha256 000000000000" in verdicts(toys, MATCH)[MATCH]


def test_changed_weights_are_named_with_both_hashes(toys: SimpleNamespace) -> None:
    file = toys.runs / MATCH / "student.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(bytes(data))
    found = verdicts(toys)
    said = found.pop(MATCH)
    assert said.startswith(f"changed: weights: {file}: sha256 is ")
    assert "expected" in said
    assert set(found.values()) == {HOLDS}


def test_changed_data_are_named_with_both_hashes(toys: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = ToyData.__init__

    def other(self: ToyData, *args: object, **kwargs: object) -> None:
        whole(self, *args, **kwargs)  # type: ignore[arg-type]
        self.content_hash = "another data set"

    monkeypatch.setattr(ToyData, "__init__", other)
    said = verdicts(toys, MATCH)[MATCH]
    assert said.startswith("changed: data set: toy (test) on this machine has the content hash another data")
    assert "the record 00000000" in said


def test_hash_of_data_is_that_of_the_files_on_the_disk(tmp_path: Path) -> None:
    for split in ("train", "test"):
        for name in ("a", "b"):
            folder = tmp_path / split / name
            folder.mkdir(parents=True)
            Image.fromarray(np.full((8, 8, 3), 7, np.uint8)).save(folder / "1.png")
    splits = ("train", "val", "test")
    config = {"data": {s: dict(type="ImageFolder", root=str(tmp_path), split=s, size=8) for s in splits}}
    first = content_hashes()(config)
    assert content_hashes()(config) == first
    Image.fromarray(np.full((8, 8, 3), 9, np.uint8)).save(tmp_path / "test" / "b" / "1.png")
    assert content_hashes()(config) != first


def test_absent_data_are_said_and_are_no_fault(toys: SimpleNamespace) -> None:
    def absent(config: object) -> str:
        raise DataMissing("toy is not on this machine; limbeck data get toy")

    (toys.runs / MATCH / "predictions.safetensors").unlink()
    (found,) = audit(named_files(toys.records, [MATCH]), evaluate_weights, {}, data_hash=absent, runs=toys.runs)
    assert (found.verdict, found.changed) == ("not here", "toy is not on this machine; limbeck data get toy")
    assert counts([found]) == {"holds": 0, "off": 0, "no weights": 0, "not here": 1}


def test_a_moved_record_is_named(toys: SimpleNamespace) -> None:
    path = record_path(toys.records, MATCH)
    path.rename(path.with_name("seed7.json"))
    assert "it was moved or edited" in verdicts(toys)[MATCH]


def test_records_are_named_by_file_id_pair_and_benchmark(toys: SimpleNamespace, tmp_path: Path) -> None:
    path = record_path(toys.records, MATCH)
    assert named_files(toys.records, [str(path), MATCH]) == [path]
    assert len(named_files(toys.records, ["toy/toy4-toy2/toymatch"])) == 2
    assert len(named_files(toys.records, ["toy"])) == len(named_files(toys.records, None)) == 7
    elsewhere = tmp_path / "elsewhere.json"
    shutil.copy(path, elsewhere)
    assert named_files(tmp_path / "absent", [str(elsewhere)]) == [elsewhere]
    assert verdicts(toys, str(elsewhere)) == {MATCH: HOLDS}  # outside the folder no place is wrong
    with pytest.raises(UnknownName, match="did you mean 'toy'"):
        named_files(toys.records, ["toi"])
    with pytest.raises(UnknownName):
        named_files(toys.records, ["../records/toy"])
    with pytest.raises(NoResults):
        named_files(tmp_path / "absent", [MATCH])


def test_runs_that_are_no_folder_are_refused(toys: SimpleNamespace) -> None:
    toys.runs = toys.records / "no"
    with pytest.raises(ConfigError, match="is not a folder"):
        verdicts(toys)
