"""Many records: the same pages by several processes, parts rendered once, and pages that leave out what is too much."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable
from pathlib import Path

import pytest
from markupsafe import escape

from limbeck.errors import CorruptFile, OutputError
from limbeck.leaderboard.site import method as method_module
from limbeck.leaderboard.site import records as module
from limbeck.leaderboard.site import task as task_module
from limbeck.leaderboard.site.build import build_site
from limbeck.leaderboard.site.cells import cell, column
from limbeck.leaderboard.site.data import newest, write_csv, write_json
from limbeck.leaderboard.site.record import config_text
from limbeck.leaderboard.site.renderer import filled
from limbeck.leaderboard.store import load_results
from limbeck.leaderboard.table import build_tables, environments, machines_of, to_json
from tests.leaderboard.fabricate import damage, linked, suite, vary, write_all


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    records = suite(
        ("DKD",), range(3), model=linked(dict(type="DKD", alpha=1.0), teacher="toy/big-small/teacher/seed0")
    )
    records += vary("DKD", "alpha", [0.5]) + suite(("KD",), range(2), pair="a-b")
    return write_all(tmp_path_factory.mktemp("results"), records)


def pages_of(site: Path) -> dict[str, bytes]:
    return {p.relative_to(site).as_posix(): p.read_bytes() for p in sorted(site.rglob("*")) if p.is_file()}


def test_several_processes_write_the_same_site(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build_site(folder, tmp_path / "one")
    monkeypatch.setattr(module, "PROCESSES_FROM", 2)
    monkeypatch.setattr(module, "CHUNK", 3)
    seen: list[str] = []

    def track(ids: Iterable[str], total: int) -> Iterable[str]:
        for identity in ids:
            seen.append(identity)
            yield identity
        assert len(seen) == total

    build_site(folder, tmp_path / "several", track=track)
    assert pages_of(tmp_path / "several") == pages_of(tmp_path / "one")
    assert seen == sorted(p.relative_to(folder).as_posix().removesuffix(".json") for p in folder.rglob("*.json"))


@pytest.mark.parametrize("several", [False, True])
def test_a_record_that_is_changed_meanwhile_is_named(
    several: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = write_all(tmp_path / "r", suite(("KD",), range(2)))
    monkeypatch.setattr(module, "PROCESSES_FROM", 2 if several else 100)
    real = module.write_records

    def late(pages: object, shown: object) -> object:
        damage(results / "toy/big-small/kd/seed1.json", lambda text: text[:100])
        return real(pages, shown)  # type: ignore[arg-type]

    monkeypatch.setattr("limbeck.leaderboard.site.pages.write_records", late)
    with pytest.raises(CorruptFile, match=r"kd/seed1\.json: not a whole JSON record"):
        build_site(results, tmp_path / "site")
    assert [p.name for p in tmp_path.iterdir()] == ["r"]


def test_a_failure_stops_the_other_processes(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PROCESSES_FROM", 2)
    monkeypatch.setattr(module, "CHUNK", 1)

    def full_disk(made: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("limbeck.leaderboard.site.pages._write_assets", full_disk)
    with pytest.raises(OutputError, match="No space left"):
        build_site(folder, tmp_path / "site")
    assert list(tmp_path.iterdir()) == []  # nothing is written into a folder that is gone


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"a": 1, "b": [True, 1.0, 1, None, {}], "c": {"d": {"e": [], "f": [[1e-7, -0.0]]}}},
        {"a": 1.0, "b": [1, True, 1.0]},
        {"ä\n": 'a\n "quoted" \\n\u2028', "<b>": ["x\ny", {"z\n": 2}]},
    ],
)
def test_a_config_is_laid_out_as_json_does(config: dict[str, object]) -> None:
    assert config_text(config) == json.dumps(config, indent=1, ensure_ascii=False)


def test_rows_are_escaped_together_as_they_are_singly() -> None:
    form = "<dt>%s</dt><dd>%s</dd>"
    hostile = [("a", "<script>alert('1')</script>"), ('&amp; "', "%s {} \\"), ("", "é\u2028")]
    for rows in ([], hostile, [*hostile, ("a\0b", "\0<i>")]):
        assert filled(form, rows) == "".join(f"<dt>{escape(a)}</dt><dd>{escape(b)}</dd>" for a, b in rows)
    assert escape(filled(form, hostile)) == filled(form, hostile)  # a template does not escape it again


def test_written_tables_have_the_values_of_to_json(folder: Path, tmp_path: Path) -> None:
    for number, table in enumerate(build_tables(load_results(folder))):
        write_json(tmp_path / "t.json", table)
        written = json.loads((tmp_path / "t.json").read_text())
        assert written == json.loads(json.dumps(to_json(table)))
        assert bool(written["ablations"]) == (number == 1)
    write_json(tmp_path / "m.json", dict(a=[], b="text", c=[[1], {"d": None}], e=()))
    assert json.loads((tmp_path / "m.json").read_text()) == dict(a=[], b="text", c=[[1], {"d": None}], e=[])


def test_environments_count_a_shared_teacher_once(tmp_path: Path) -> None:
    other = dict(environment__cpu="another CPU")
    write_all(tmp_path, suite(("KD",), range(2)))
    write_all(tmp_path, suite(("KD",), range(3), pair="b", teacher_record="toy/big-small/teacher/seed0", **other))
    results = load_results(tmp_path)
    every = {r.id: r for group in results for r in group.records}
    assert sum(len(group.runs) for group in results) > len(every)
    assert machines_of(results.runs) == environments(every.values())


def test_the_newest_keep_their_order() -> None:
    finished = dict(a="2025-03", b="2025-01", c="2025-02", d="2025-03")
    assert newest("abcd", 9, finished.__getitem__) == ["a", "b", "c", "d"]
    assert newest("abcd", 3, finished.__getitem__) == ["a", "c", "d"]
    assert newest("abcd", 1, finished.__getitem__) == ["a"]  # of equals the first


def test_csv_has_values_and_halves(tmp_path: Path) -> None:
    rows = [
        [cell('a "b",c'), cell("1.50", 1.498, half="0.1", exact=0.1234)],
        [cell("x\ny"), cell("–", "")],
    ]
    write_csv(tmp_path / "t.csv", [column("pair", text=True), column("gain")], rows)
    with (tmp_path / "t.csv").open(newline="", encoding="utf-8") as file:
        assert list(csv.reader(file)) == [
            ["pair", "gain", "gain ±"],
            ['a "b",c', "1.498", "0.1234"],
            ["x\ny", "", ""],
        ]


def test_pages_show_the_newest_pairs_and_a_file_has_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(task_module, "PAIRS", 2)
    monkeypatch.setattr(method_module, "PAIRS", 2)
    for number, day in enumerate((3, 1, 2)):
        write_all(
            tmp_path / "r", suite(("KD",), range(2), pair=f"p{number}", finished=f"2025-01-0{day}T00:00:00+00:00")
        )
    site = build_site(tmp_path / "r", tmp_path / "site").parent
    for page, table in (("tasks/image-classification", "advice-pairs"), ("methods/kd", "measured")):
        text = (site / f"{page}.html").read_text()
        assert "Shown are the 2 pairs with the newest runs, of 3" in text
        assert f'<a href="../{page}.csv">' in text
        shown = text[text.index(f'id="{table}"') :]
        lines = shown[: shown.index("</table>")]
        assert ["toy/p0" in lines, "toy/p1" in lines, "toy/p2" in lines] == [True, False, True]
        with (site / f"{page}.csv").open(newline="", encoding="utf-8") as file:
            assert [row[0][:6] for row in csv.reader(file)] == ["pair", "toy/p0", "toy/p1", "toy/p2"]
    assert "3 pairs of teacher and student" in (site / "tasks/image-classification.html").read_text()
    assert "Measured in 3 pairs" in (site / "methods/kd.html").read_text()
