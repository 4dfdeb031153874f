"""Rows of the reported tables: read strictly, with file and line of what is wrong, gains as printed."""

from __future__ import annotations

import csv
from decimal import Decimal
from pathlib import Path

import pytest
from rich.console import Console

from limbeck.errors import CorruptFile, UnknownName
from limbeck.leaderboard.reported import render_reported, reported_gains, reported_json, reported_rows, select
from limbeck.leaderboard.reported.rows import TABLES, ReportedGain, ReportedRow, read_table, table_files
from limbeck.leaderboard.reported.show import group, signed

GOOD = {
    "task": "image-classification",
    "dataset": "CIFAR-100",
    "split": "test",
    "metric": "top1",
    "higher_is_better": "true",
    "method": "KD",
    "method_year": "2015",
    "teacher": "resnet56",
    "teacher_value": "72.34",
    "student": "resnet20",
    "baseline_value": "69.06",
    "distilled_value": "70.66",
    "schedule": "",
    "source_title": "A paper",
    "source_arxiv": "",
    "source_table": "table 1",
    "source_repo": "HobbitLong/RepDistiller@b84f547:README.md",
    "note": "",
}


def write(folder: Path, **changes: str) -> Path:
    """A table whose third line has the changes."""
    path = folder / "made-up.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        table = csv.DictWriter(file, list(GOOD))
        table.writeheader()
        table.writerows([GOOD, GOOD | changes])
    return path


def printed(rows: list[ReportedRow]) -> str:
    console = Console(width=200, record=True, force_terminal=False)
    with console.capture() as capture:
        render_reported(rows, console)
    return capture.get()


def test_shipped_tables_have_every_line_of_their_files() -> None:
    """Against csv alone: nothing is dropped, nothing is rounded."""
    raw = [(p.name, row) for p in table_files() for row in csv.DictReader(p.read_text(encoding="utf-8").splitlines())]
    assert len(raw) == len(reported_rows()) == 853
    for (name, plain), row in zip(raw, reported_rows()):
        assert (name, plain["distilled_value"]) == (row.file, str(row.distilled_value))
        assert plain["baseline_value"] == ("" if row.baseline_value is None else str(row.baseline_value))
    assert len(reported_gains()) == 15


def test_lines_are_those_of_the_file(tmp_path: Path) -> None:
    assert [row.place for row in read_table(write(tmp_path))] == ["made-up.csv, line 2", "made-up.csv, line 3"]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"distilled_value": ""}, "distilled_value"),
        ({"distilled_value": "NaN"}, "distilled_value"),
        ({"distilled_value": "Infinity"}, "distilled_value"),
        ({"baseline_value": "about 70"}, "baseline_value"),
        ({"task": "image-clasification"}, "task"),
        ({"higher_is_better": "yes"}, "higher_is_better"),
        ({"method": ""}, "method"),
        ({"method": "K\x1b[2JD"}, "control character"),
        ({"note": "right\u202eleft"}, "control character"),
        ({"source_repo": "https://example.org/table"}, "source_repo"),
        ({"method_year": "15"}, "method_year"),
    ],
)
def test_a_bad_row_is_named_with_file_and_line(tmp_path: Path, changes: dict[str, str], said: str) -> None:
    with pytest.raises(CorruptFile, match=rf"made-up\.csv, line 3: .*{said}"):
        read_table(write(tmp_path, **changes))


def test_a_file_of_other_shape_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path)
    path.write_text(path.read_text() + "one,two\n")
    with pytest.raises(CorruptFile, match=r"line 4: has more or fewer fields"):
        read_table(path)
    path.write_text(path.read_text().replace("split", "splitt", 1))
    with pytest.raises(CorruptFile, match=r"line 1: the columns"):
        read_table(path)
    with pytest.raises(CorruptFile, match="cannot be read"):
        read_table(tmp_path / "absent.csv")
    assert len(read_table(TABLES / "gains.csv", ReportedGain)) == 15


def test_gain_is_exact_signed_and_blank_without_a_baseline(tmp_path: Path) -> None:
    better, lower = read_table(write(tmp_path, higher_is_better="false"))
    assert (better.gain, lower.gain) == (Decimal("1.60"), Decimal("-1.60"))
    assert [signed(v) for v in (better.gain, lower.gain, None, Decimal("0.00"))] == ["+1.60", "−1.60", "–", "0.00"]
    assert read_table(write(tmp_path, baseline_value=""))[1].gain is None


def test_selection_takes_printed_and_our_names() -> None:
    assert {r.method for r in select(method="spkd")} == {"SP"}
    assert {r.method for r in select(method="SP")} == {"SP"}
    assert {r.dataset for r in select("semantic-segmentation", dataset="ade20k")} == {"ADE20K"}
    with pytest.raises(UnknownName, match="did you mean 'DKD'"):
        select(method="DKDD")
    with pytest.raises(UnknownName, match="object-detection"):
        select("object-detektion")
    with pytest.raises(UnknownName, match="CIFAR-100"):
        select(dataset="CIFAR-1000")


def test_groups_hold_rows_of_one_task_data_teacher_and_student() -> None:
    found = group(select(method="DKD", dataset="CIFAR-100"))
    assert all(len({(r.teacher, r.student, r.split) for r in rows}) == 1 for rows in found.values())
    assert sum(map(len, found.values())) == len(select(method="DKD", dataset="CIFAR-100"))


def test_print_says_what_stands_where_and_where_from() -> None:
    text = printed(select(method="DKD", dataset="CIFAR-100"))
    assert "image-classification on CIFAR-100 (test): ResNet56 → ResNet20" in text
    assert "mdistiller: Decoupled Knowledge Distillation, arXiv 2203.08679" in text
    assert "none measured by Limbeck" in text


def test_markup_and_html_in_a_row_are_printed_as_they_stand(tmp_path: Path) -> None:
    evil = "[red]KD[/red]<script>alert(1)</script>[link=https://example.org]x[/link]"
    text = printed(read_table(write(tmp_path, method=evil)))
    assert evil in text


def test_json_is_marked_as_reported() -> None:
    first = reported_json(select(method="KD"))[0]
    assert first["origin"] == "reported"
    assert (first["gain"], first["limbeck_method"], first["source"]) == (1.66, "KD", "repdistiller")
