"""The index: what is read again, what is kept, and that it says what the records say."""

from __future__ import annotations

import gc
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest

import limbeck.leaderboard.index as index
from limbeck.engine.record import RunRecord, iter_records, read_record, record_path, write_failure
from limbeck.errors import CorruptFile
from limbeck.leaderboard.index import index_path, list_files, read_fast, read_index, uncollected
from limbeck.leaderboard.index_row import COLUMNS, row_of
from limbeck.leaderboard.store import load_results
from tests.leaderboard.fabricate import fabricate, failure, suite, write_all


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small folder of records that lie there for long, of which an index is kept."""
    monkeypatch.setenv("LIMBECK_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(index, "KEPT_FROM", 1)
    monkeypatch.setattr(index, "_RACY", 0)
    return write_all(tmp_path / "results", suite(("KD", "DKD"), range(3)))


@pytest.fixture
def parsed(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], list[str]]:
    """Names the files that a load reads."""
    seen: list[str] = []

    def spy(path: Path) -> RunRecord:
        seen.append(path.name)
        return read_record(path)

    monkeypatch.setattr(index, "read_fast", spy)

    def load(folder: Path) -> list[str]:
        seen.clear()
        load_results(folder)
        return sorted(seen)

    return load


def test_a_file_is_parsed_once(folder: Path, parsed: Callable[[Path], list[str]]) -> None:
    assert len(parsed(folder)) == 10
    assert parsed(folder) == []
    write_all(folder, [fabricate("KD", 7), fabricate("plain", 7)])
    assert parsed(folder) == ["seed7.json", "seed7.json"]
    changed = fabricate("KD", 1, metrics={"top1": 12.0})
    write_all(folder, [changed])
    assert parsed(folder) == ["seed1.json"]
    assert load_results(folder).groups[0].method("KD")[1].value == 12.0
    record_path(folder, changed.id).unlink()
    assert parsed(folder) == []
    assert sorted(load_results(folder).groups[0].method("KD")) == [0, 2, 7]


def test_equal_size_and_mtime_do_not_hide_a_change(folder: Path, parsed: Callable[[Path], list[str]]) -> None:
    parsed(folder)
    path = record_path(folder, "toy/big-small/kd/seed1")
    before, text = path.stat(), path.read_text()
    time.sleep(0.05)  # a file system's clock ticks in milliseconds
    path.write_text(text.replace('"train_samples": 800', '"train_samples": 900'))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    assert parsed(folder) == ["seed1.json"]


def test_fresh_files_are_not_kept(
    folder: Path, parsed: Callable[[Path], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index, "_RACY", 10**12)
    parsed(folder)
    assert not index_path(folder).is_file()
    assert len(parsed(folder)) == 10


def test_damage_is_told_each_time_and_costs_no_other_file(folder: Path, parsed: Callable[[Path], list[str]]) -> None:
    path = record_path(folder, "toy/big-small/kd/seed1")
    whole = path.read_text()
    path.write_text(whole.replace('"fixture": true', '"fixture": false'))
    for _ in range(2):
        with pytest.raises(CorruptFile, match=r"kd/seed1\.json: the config's sha256"):
            load_results(folder)
    path.write_text(whole)
    assert parsed(folder) == ["seed1.json"]


@pytest.mark.parametrize("text", [b"", b"PAR1 and nothing else"])
def test_torn_index_is_made_again(folder: Path, parsed: Callable[[Path], list[str]], text: bytes) -> None:
    parsed(folder)
    index_path(folder).write_bytes(text)
    assert len(parsed(folder)) == 10
    assert parsed(folder) == []


def test_index_of_other_columns_is_made_again(folder: Path, parsed: Callable[[Path], list[str]]) -> None:
    parsed(folder)
    place = index_path(folder)
    pl.read_parquet(place).drop("shots").write_parquet(place)
    assert len(parsed(folder)) == 10


def test_without_a_cache_folder_everything_is_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocked = folder.parent / "file"
    blocked.write_text("")
    monkeypatch.setenv("LIMBECK_CACHE", str(blocked))
    assert len(load_results(folder).index) == 10


def test_several_processes_say_the_same(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    alone = read_index(folder, list_files(folder))
    index_path(folder).unlink()
    monkeypatch.setattr(index, "PROCESSES_FROM", 2)
    monkeypatch.setattr(index, "CHUNK", 3)
    told: list[tuple[int, int]] = []
    assert read_index(folder, list_files(folder), lambda *count: told.append(count)).equals(alone)
    assert told == [(3, 10), (6, 10), (9, 10), (10, 10)]


def test_listing_is_that_of_iter_records(folder: Path) -> None:
    (folder / ".hidden.json").write_text("no record")
    (folder / "notes.txt").write_text("no record")
    write_failure(folder, failure("KD", 9))
    write_all(folder, suite(("KD",), range(1), pair="big"))  # before 'big-small', as folders go
    listed = list_files(folder)
    assert [folder / path for path, *_ in listed.records] == [path for path, _ in iter_records(folder)]
    assert [p.name for p in listed.failures] == ["seed9.failed.json"]


def test_a_link_that_leads_nowhere_is_told(folder: Path) -> None:
    (folder / "toy/big-small/kd/seed8.json").symlink_to(folder / "nothing")
    with pytest.raises(CorruptFile, match=r"seed8\.json: cannot be read"):
        load_results(folder)


def test_row_has_every_column() -> None:
    row = dict(zip(COLUMNS, row_of(fabricate("KD", 3)), strict=True))
    assert (row["id"], row["key"], row["seed"], row["is_variant"]) == ("toy/big-small/kd/seed3", "kd", 3, False)
    assert row["value"] == row["values"][row["metrics"].index("top1")]


@pytest.mark.parametrize(
    "change",
    [
        lambda raw: raw["metrics"].update(top1=float("nan")),
        lambda raw: raw.update(unknown=1),
        lambda raw: raw.pop("recipe"),
        lambda raw: raw.update(seed="three"),
        lambda raw: raw.update(record_version=2),
        lambda raw: raw["config"].update(fixture=None),
    ],
)
def test_fast_reading_refuses_as_slow_does(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    path = record_path(folder, "toy/big-small/kd/seed1")
    assert read_fast(path) == read_record(path)
    raw = json.loads(path.read_text())
    change(raw)
    path.write_text(json.dumps(raw))
    with pytest.raises(CorruptFile) as slow:
        read_record(path)
    with pytest.raises(CorruptFile) as fast:
        read_fast(path)
    assert str(fast.value) == str(slow.value)


def test_a_kept_index_costs_a_fraction_of_reading(folder: Path) -> None:
    """A ratio of CPU seconds within one process."""
    write_all(folder, suite(tuple(f"M{n}" for n in range(40)), range(5)))
    spent = []
    for _ in range(2):
        start = time.process_time()
        assert len(read_index(folder, list_files(folder))) > 200
        spent.append(time.process_time() - start)
    assert spent[1] < spent[0] / 2


@pytest.mark.parametrize("before", [True, False])
def test_cycles_are_looked_for_again_after_a_chunk_and_after_its_failure(before: bool) -> None:
    states = []

    @uncollected()
    def work(fail: bool) -> None:
        states.append(gc.isenabled())
        if fail:
            raise CorruptFile("a record")

    (gc.enable if before else gc.disable)()
    try:
        work(False)
        assert gc.isenabled() == before
        with pytest.raises(CorruptFile, match="a record"):
            work(True)
        assert gc.isenabled() == before
    finally:
        gc.enable()
    assert states == [False, False]
