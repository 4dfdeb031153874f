"""The page's ablations, marks and teachers: plotted and linked from the records, and text whatever they are called."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
import pytest
import scipy.stats

from limbeck.engine.record import read_record
from limbeck.leaderboard.site.build import build_site
from tests.leaderboard.fabricate import fabricate, linked, suite, vary, write_all
from tests.leaderboard.pages import page_of, text_of, views_of
from tests.leaderboard.site.test_build import Page


@pytest.fixture(scope="module")
def ablated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ablated")
    kd = linked(dict(type="KD", temperature=4.0), student=dict(depths=[3, 3, 3]))
    write_all(folder, suite((), range(3)) + [fabricate("KD", s, model=kd) for s in range(3)])
    write_all(folder, [fabricate("SimKD", s, assumption="Ours <b>", student__parameters=96_000) for s in range(3)])
    write_all(folder, vary("KD", "temperature", [1.0, 16.0]) + vary("SimKD", "weight", [0.5, 2.0]))
    write_all(folder, vary("KD", "student.depths", [[1, 3, 5], [3, 1, 1]], model=linked(student=dict(depths=0))))
    write_all(folder, [*vary("KD", "<i>", ["<u>"]), fabricate("teacher-vit", 0)])
    return build_site(folder, tmp_path_factory.mktemp("out") / "site")


def plots(index: Path) -> dict[str, dict[str, Any]]:
    """What the ablations' plots, which the page shows in this order, were drawn from."""
    views = views_of(index.parent / "records")["toy-big-small-v1"]["ablations"]
    places = [text_of(index).index(view["svg"]) for view in views]
    assert places == sorted(places)
    return {f"{v['plot']['method']}@{v['plot']['option']}": v["plot"] for v in views}


def test_ablations_are_plotted_from_their_records(ablated: Path) -> None:
    found = plots(ablated)
    assert list(found) == ["KD@<i>", "KD@student.depths", "KD@temperature", "SimKD@weight"]
    assert {k: d["axis"] for k, d in found.items()} == {
        "KD@<i>": "nominal",
        "KD@student.depths": "nominal",
        "KD@temperature": "log",
        "SimKD@weight": "linear",
    }
    heat = found["KD@temperature"]
    assert [(p["x"], p["label"], p["base"]) for p in heat["points"]] == [
        (1.0, "1", False),
        (4.0, "4", True),
        (16.0, "16", False),
    ]
    for point, name in zip(heat["points"], ("kd@temperature=1.0", "kd", "kd@temperature=16.0")):
        top1 = [read_record(p).value for p in sorted((ablated.parent / "records/toy/big-small" / name).glob("*.json"))]
        half = scipy.stats.t.ppf(0.975, 2) * scipy.stats.sem(top1)
        assert [point["low"], point["mean"], point["high"]] == pytest.approx(
            [np.mean(top1) - half, np.mean(top1), np.mean(top1) + half]
        )
    plain = [read_record(p).value for p in (ablated.parent / "records/toy/big-small/plain").glob("*.json")]
    assert [d["plain"] for d in found.values()] == pytest.approx([np.mean(plain)] * 4)
    assert [p["label"] for p in found["KD@student.depths"]["points"]] == ["1-3-5", "3-1-1", "3-3-3"]
    unread = found["SimKD@weight"]["points"][0]
    assert (unread["label"], unread["x"], unread["base"]) == ("base", None, True)


def test_every_point_opens_its_records(ablated: Path) -> None:
    page = Page(page_of(ablated))
    assert page.targets <= page.ids
    linked_ = {link for links in page.popover_links.values() for link in links}
    assert {unquote(x) for x in linked_} == {
        f"../{p.relative_to(ablated.parent).as_posix()}" for p in (ablated.parent / "records").rglob("*.html")
    }
    for plot in plots(ablated).values():
        for point in plot["points"]:
            assert len([x for x in page.popover_links[point["popover"]] if "/plain/" not in x]) == 3
    assert page.popover_links[plots(ablated)["KD@temperature"]["points"][1]["popover"]][0].endswith("/kd/seed0.html")
    for link in page.links:
        place = page_of(ablated).parent / unquote(link.partition("#")[0])
        assert link.startswith(("#", "data:")) or place.is_file(), link


def test_ablations_stay_out_of_the_main_table(ablated: Path) -> None:
    assert sorted(m for m, _ in Page(page_of(ablated)).rows) == ["KD", "SimKD", "plain", "teacher", "teacher-vit"]
    table = json.loads((ablated.parent / "tables/toy-big-small-v1.json").read_text())
    assert [len(a["points"]) for a in table["ablations"]] == [2, 3, 3, 3]


def test_marks_teachers_and_hostile_options_are_shown_as_text(ablated: Path) -> None:
    text = text_of(ablated)
    assert 'SimKD</a><span class="mark-of">†‡</span>' in text
    assert "SimKD, ours, not the paper&#39;s: Ours &lt;b&gt;" in text
    assert "‡ Deploys another network" in text
    assert "share of the way to teacher." in text
    assert "no p is shown" in text
    for tag in ("<i>", "<u>", "<b>"):
        assert tag not in text
