"""Published tables: what can run here, and of everything else exactly what is missing."""

from __future__ import annotations

from pathlib import Path

import pytest
from rich.console import Console

from limbeck.engine.config import load_pair
from limbeck.engine.data_sources import Source
from limbeck.errors import DataMissing, UnknownName
from limbeck.leaderboard import rerun_reported
from limbeck.leaderboard.rerun import parse_cells
from limbeck.leaderboard.rerun_reported import (
    measured_time,
    missing_data,
    published_cells,
    published_results,
    published_suite,
    render_list,
    render_published,
    render_results,
)
from tests.leaderboard.fabricate import fabricate, write_all

PAIR = "resnet56-resnet20"


def here(data: object) -> str:
    return ""


def absent(data: object) -> str:
    return "CIFAR-100, 169 MB. put it into X; get it with: limbeck data get cifar100"


def test_a_figure_with_a_config_runs_where_its_data_are() -> None:
    cells = published_cells("reported:repdistiller", parse_cells(["SP"]), pair=PAIR, missing=here)
    (cell,) = cells
    assert (cell.state, cell.method, cell.config) == ("can run", "SPKD", "vision/paper_cifar100_resnet56_resnet20")
    assert float(cell.row.distilled_value) == 69.67
    suite = published_suite("reported:repdistiller", cells)
    assert suite is not None
    assert [(g.config, g.methods) for g in suite.groups] == [(cell.config, ["SPKD"])]


def test_without_data_nothing_runs_and_the_page_says_what_to_do(tmp_path: Path) -> None:
    cells = published_cells("repdistiller", parse_cells(["KD"]), pair=PAIR, missing=absent)
    assert {c.state for c in cells} == {"data missing"}
    assert published_suite("repdistiller", cells) is None
    console = Console(width=200)
    with console.capture() as capture:
        render_published("repdistiller", cells, tmp_path, console)
    text = capture.get()
    assert "missing here: CIFAR-100, 169 MB. put it into X; get it with: limbeck data get cifar100" in text
    assert f"run them: limbeck bench reproduce reported:repdistiller --pair {PAIR} --cells KD" in text
    assert "no measurement exists: there is no record of ours of this pair" in text


def test_what_has_no_counterpart_is_named() -> None:
    cells = published_cells("cirkd", missing=here)
    assert {c.state for c in cells} == {"no counterpart"}
    assert any("method CIRKDV2" in c.why for c in cells)
    whys = {c.why for c in published_cells("repdistiller", missing=here)}
    assert "method AB" in whys


def test_a_metric_that_a_config_does_not_measure_is_no_counterpart() -> None:
    states = {(c.row.metric, c.state) for c in published_cells("fgd", parse_cells(["FGD"]), missing=here)}
    assert ("segm_mAP", "can run") not in states


@pytest.mark.parametrize(
    ("identity", "cells", "pair", "said"),
    [
        ("reported:repdistilller", [], None, "did you mean 'repdistiller'"),
        ("reported:repdistiller", ["CRDD"], None, "did you mean 'CRD'"),
        ("reported:repdistiller", ["KD"], "resnet56-resnet21", "did you mean 'resnet56-resnet20'"),
    ],
)
def test_unknown_names_have_near_ones(identity: str, cells: list[str], pair: str | None, said: str) -> None:
    with pytest.raises(UnknownName, match=said):
        published_cells(identity, parse_cells(cells), pair=pair, missing=here)


def test_missing_data_is_what_the_data_set_itself_says(monkeypatch: pytest.MonkeyPatch) -> None:
    def find() -> Path:
        raise DataMissing("cifar100 is not in /a; put it into /a")

    data = load_pair("vision/paper_cifar100_resnet56_resnet20").data
    source = Source("CIFAR-100, 169 MB", find, lambda progress: Path())
    monkeypatch.setattr(rerun_reported, "sources", lambda: {"cifar100": source})
    assert missing_data(data) == (
        "CIFAR-100, 169 MB. cifar100 is not in /a; put it into /a; get it with: limbeck data get cifar100"
    )
    monkeypatch.setattr(rerun_reported, "sources", lambda: {"cifar100": Source("CIFAR-100", find, why="terms")})
    assert missing_data(data).endswith("put it into /a; it cannot be downloaded: terms")
    monkeypatch.setattr(rerun_reported, "sources", lambda: {"cifar100": Source("CIFAR-100", lambda: Path("/a"))})
    assert missing_data(data) == ""


def test_printed_and_measured_stand_beside_each_other(tmp_path: Path) -> None:
    """Made-up runs: KD 72, the plain student 70; RepDistiller prints 70.66 and 69.06."""
    place = dict(benchmark="cifar100", pair=PAIR)
    runs = [fabricate(m, 0, **place, metrics={"top1": v}) for m, v in (("KD", 72.0), ("plain", 70.0))]
    write_all(tmp_path, runs)
    (found,) = published_results(
        published_cells("repdistiller", parse_cells(["KD"]), pair=PAIR, missing=here), tmp_path
    )
    assert (found.value, found.gain) == (72.0, 2.0)
    assert found.difference == pytest.approx(1.34)
    assert found.printed_gain == pytest.approx(1.60)
    console = Console(width=140)
    with console.capture() as capture:
        render_results([found], console)
    assert "+1.34" in capture.get()
    assert "told, not judged" in capture.get()
    assert "h a run in 2 records, on made-up CPU" in measured_time(found.cell, tmp_path)


def test_list_has_suites_and_every_source() -> None:
    console = Console(width=200)
    with console.capture() as capture:
        render_list(console)
    assert "fashion-mnist" in capture.get()
    assert "reported:repdistiller" in capture.get()
    assert "162 figures" in capture.get()
