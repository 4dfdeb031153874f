"""The site in a real Chromium: it reads without scripts, and with them sorts, filters, keeps its state, and is safe."""

from __future__ import annotations

import csv
import io
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from limbeck.engine.record import read_record

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
PATIENCE = 120_000  # ms; of a busy machine
BENCHMARK = "benchmarks/toy.html"
TABLE = "#table-toy-big-small-v1"
KINDS = {
    "home": "index.html",
    "numbers": "numbers.html",
    "task": "tasks/image-classification.html",
    "benchmark": BENCHMARK,
    "curves": "benchmarks/dho.html",
    "method": "methods/kd.html",
    "methods": "methods/index.html",
    "student": "students/smallnet.toy_kd.html",
    "record": "records/toy/big-small/kd/seed0.html",
}


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture
def page(browser: Any) -> Iterator[Any]:
    """A page that fails the test where anything is written to its console as an error."""
    context = browser.new_context(viewport=dict(width=1280, height=900), color_scheme="light")
    context.set_default_timeout(PATIENCE)
    opened = context.new_page()
    said: list[str] = []
    opened.on("console", lambda message: said.append(message.text) if message.type in ("error", "warning") else None)
    opened.on("pageerror", lambda error: said.append(str(error)))
    yield opened
    context.close()
    assert said == []


def address(site: SimpleNamespace, place: str) -> str:
    return (site.index.parent / place).as_uri()


def column(page: Any, name: str, table: str = TABLE) -> list[str]:
    """What a column's cells are sorted by, from top to bottom, teachers left out."""
    heads = page.locator(f"{table} thead th").all_inner_texts()
    at = [h.strip() for h in heads].index(name) + 1
    cells = page.locator(f"{table} tbody.sortable tr:not([hidden]) > :nth-child({at})")
    return cells.evaluate_all("cells => cells.map(c => c.dataset.value)")


def test_no_text_of_a_record_or_card_runs_and_every_page_fits_a_narrow_screen(
    small_site: SimpleNamespace, browser: Any
) -> None:
    folder = small_site.index.parent
    records = folder / "records"
    pages = [p for p in sorted(folder.rglob("*.html")) if records not in p.parents]
    pages += [p for p in sorted(records.rglob("*.html")) if "seed0" in p.name and ("evil" in str(p) or "kd" in str(p))]
    context = browser.new_context(viewport=dict(width=360, height=740))
    context.set_default_timeout(PATIENCE)
    page = context.new_page()
    said: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on(
        "request", lambda request: said.append(request.url) if not request.url.startswith(("file:", "data:")) else 0
    )
    for path in pages:
        page.goto(path.as_uri())
        assert page.evaluate("window.hacked") is None, path
        assert page.evaluate("document.documentElement.scrollWidth") <= 360, path
        assert page.locator("main h1").count() == 1, path
        assert page.locator("main img, main script, main b img").count() == 0, path
    assert said == []
    text = page.goto(address(small_site, KINDS["student"])) and page.inner_text("main")
    assert "</script><script>window.hacked=1</script>" in text  # the card's text is shown as it is
    context.close()


def test_all_kinds_of_pages_are_reached_from_the_home_page(small_site: SimpleNamespace, page: Any) -> None:
    page.goto(small_site.index.as_uri())
    page.click("#tasks >> text=Image classification")
    page.click("h3 >> text=big-small")
    assert page.url.endswith(f"{BENCHMARK}#toy-big-small-v1")
    page.click(f"{TABLE} tr[data-method=KD] td.main button")
    page.click(".records:popover-open >> text=seed 0")
    assert page.url.endswith("records/toy/big-small/kd/seed0.html")
    page.click("text=its student in the zoo")
    assert 'limbeck.load_student("smallnet.toy_kd")' in page.inner_text("main")
    page.click(".lead >> text=KD")
    assert page.url.endswith("methods/kd.html")
    assert "arXiv 1503.02531" in page.inner_text("main")  # the docstring's source
    page.click("#measured >> text=toy/big-small")
    page.click("text=How the numbers are made")
    assert "Holm-adjusted" in page.inner_text("main")
    page.click(".home")
    assert page.url == small_site.index.as_uri()


def test_sorting_filtering_and_columns_are_in_the_address(small_site: SimpleNamespace, page: Any) -> None:
    page.goto(address(small_site, BENCHMARK))
    before = column(page, "method")
    assert before[0] == "plain"
    page.click(f"{TABLE} thead >> text=top-1")
    means = [float(v) for v in column(page, "top-1 ↑")]
    assert means == sorted(means, reverse=True)
    page.click(f"{TABLE} thead >> text=top-1")
    assert [float(v) for v in column(page, "top-1 ↑")] == sorted(means)
    page.click(f"{TABLE} thead button >> text=gain")
    assert column(page, "gain")[-1] == ""  # the plain student has none: last, whichever way
    tools = page.locator(".tools").first
    tools.locator("input[type=search]").fill("d")
    assert column(page, "method") == [m for m in column(page, "method") if "d" in m.lower()]
    tools.locator("summary").click()
    tools.get_by_label("FLOPs", exact=True).uncheck()
    assert page.locator(f"{TABLE} th:visible >> text=FLOPs").count() == 0
    shown, link = column(page, "method"), page.url
    assert "gain" in link
    other = page.context.new_page()
    other.goto(link)
    assert column(other, "method") == shown
    assert len(shown) < len(before)
    assert other.locator(f"{TABLE} th:visible >> text=FLOPs").count() == 0
    assert other.locator(f"{TABLE} th[aria-sort=descending]").inner_text().strip() == "gain"


def test_keys_are_enough(small_site: SimpleNamespace, page: Any) -> None:
    page.goto(address(small_site, BENCHMARK))
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    page.keyboard.press("/")
    assert page.evaluate("document.activeElement.className") == "find"
    page.keyboard.type("dkd")
    assert column(page, "method") == ["DKD"]
    page.focus(f"{TABLE} thead th:nth-child(4) button")
    page.keyboard.press("Enter")
    assert page.get_attribute(f"{TABLE} thead th:nth-child(4)", "aria-sort") == "descending"
    page.focus(f"{TABLE} tr[data-method=DKD] td.main button")
    page.keyboard.press("Enter")
    assert page.locator(".records:popover-open").count() == 1
    page.keyboard.press("Escape")
    assert page.locator(".records:popover-open").count() == 0


def test_dark_mode_follows_the_system_and_a_switch_that_is_remembered(small_site: SimpleNamespace, page: Any) -> None:
    def back() -> str:
        return page.evaluate("getComputedStyle(document.body).backgroundColor")

    page.goto(small_site.index.as_uri())
    light = back()
    page.emulate_media(color_scheme="dark")
    dark = back()
    assert light != dark
    page.click("#theme")
    assert (page.inner_text("#theme"), back()) == ("theme: light", light)
    page.goto(address(small_site, BENCHMARK))
    assert (page.inner_text("#theme"), back()) == ("theme: light", light)
    page.click("#theme")
    page.emulate_media(color_scheme="light")
    assert (page.inner_text("#theme"), back()) == ("theme: dark", dark)


def downloaded(page: Any, name: str) -> str:
    with page.expect_download() as waiting:
        page.get_by_label(name, exact=True).click()
    return Path(waiting.value.path()).read_text(encoding="utf-8")


def test_downloads_have_the_records_numbers(small_site: SimpleNamespace, page: Any) -> None:
    page.goto(address(small_site, BENCHMARK))
    rows = list(csv.DictReader(io.StringIO(downloaded(page, "CSV of toy/big-small"))))
    assert [r["method"] for r in rows[:2]] == ["teacher", "plain"]
    lines = json.loads(downloaded(page, "JSON of toy/big-small"))
    for row, line in zip(rows, lines, strict=True):
        folder = small_site.results / "toy" / "big-small" / row["method"].rstrip("†‡§").lower()
        top1 = [read_record(p).value for p in folder.glob("*.json")]
        assert float(row["top-1 ↑"]) == line["top-1 ↑"] == pytest.approx(np.mean(top1))
        assert int(row["n"]) == line["n"] == len(top1)
        if len(top1) > 1:
            half = 4.302652729911275 * np.std(top1, ddof=1) / np.sqrt(3)  # t of 2 degrees of freedom
            assert float(row["top-1 ↑ ±"]) == line["top-1 ↑ ±"] == pytest.approx(half)
        else:
            assert (row["top-1 ↑ ±"], line["top-1 ↑ ±"], row["gain"], line["gain"]) == ("", None, "", None)
    page.locator(".tools input[type=search]").first.fill("fitnet")
    only = json.loads(downloaded(page, "JSON of toy/big-small"))
    assert [line["method"] for line in only] == ["teacher", "FitNet"]  # what is shown


def test_pages_read_without_scripts(small_site: SimpleNamespace, browser: Any) -> None:
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(address(small_site, BENCHMARK))
    assert page.locator(f"{TABLE} tbody tr").count() == 6
    for plot in page.locator(".canvas svg").all():
        box = plot.bounding_box()
        assert box is not None
        assert box["height"] > 50
    assert page.locator("#theme, .tools").locator("visible=true").count() == 0
    page.click(f"{TABLE} tr[data-method=KD] td.main button")
    assert page.locator(".records:popover-open a").count() == 6
    page.goto(address(small_site, KINDS["task"]))
    assert "Which method to try" in page.inner_text("main")
    context.close()


def test_plots_open_records_and_keys_hide_lines(small_site: SimpleNamespace, page: Any) -> None:
    page.goto(address(small_site, KINDS["curves"]))
    page.locator(".canvas[data-plot=dots] .mark.method circle:not(.seed)").first.click()
    assert page.locator(".records:popover-open").count() == 1
    page.keyboard.press("Escape")
    line = page.locator(".canvas[data-plot=curves] [data-series='1']")
    key = page.locator(".key button").nth(1)
    assert line.is_visible()
    key.click()
    assert (line.is_visible(), key.get_attribute("aria-pressed")) == (False, "false")
    key.click()
    assert line.is_visible()


def test_a_record_shows_its_training_in_both_themes_and_one_without_curves_shows_no_heading(
    small_site: SimpleNamespace, page: Any
) -> None:
    page.goto(address(small_site, KINDS["record"]))
    assert page.locator("#training").is_visible()
    plots = page.locator(".canvas[data-plot=training]")
    assert plots.count() == 2
    assert page.locator(".canvas desc").first.text_content().startswith("sum from 3 in epoch 1 to 0.15 in epoch 20")
    colours = []
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        line, name = (plots.first.locator(f".series.hue0 {tag}") for tag in ("polyline", "text"))
        assert line.bounding_box()["width"] > 100
        colours.append(line.evaluate("e => getComputedStyle(e).stroke"))
        assert name.evaluate("e => getComputedStyle(e).fill") == colours[-1]
    assert colours[0] != colours[1]
    page.goto(address(small_site, KINDS["record"].replace("/kd/", "/dkd/")))
    assert page.locator("#training, .canvas").count() == 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_serious(small_site: SimpleNamespace, page: Any, scheme: str) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe is not installed").Axe()
    page.emulate_media(color_scheme=scheme)
    for kind in KINDS if scheme == "light" else ("task", "benchmark", "curves", "student", "record"):
        page.goto(address(small_site, KINDS[kind]))
        found = axe.run(page, options=dict(preload=False)).response["violations"]
        bad = [
            (v["id"], [n["html"][:200] for n in v["nodes"]][:3])
            for v in found
            if v["impact"] in ("serious", "critical")
        ]
        assert bad == [], kind
