"""The page: whole, offline, and every figure from a record that it links to."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest

from limbeck.engine.record import read_record
from limbeck.errors import OutputError
from limbeck.leaderboard.checks import NoResults
from limbeck.leaderboard.site import pages as module
from limbeck.leaderboard.site.build import build_site
from tests.leaderboard.fabricate import fabricate, suite, write_all
from tests.leaderboard.pages import page_of, text_of, views_of

METHODS = ("KD", "DKD", "DIST", "FitNet")


class Page(HTMLParser):
    """Collects what the tests ask for: addresses, ids, heads, and the cells of each results table."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.ids: set[str] = set()
        self.targets: set[str] = set()
        self.heads: list[dict[str, str | None]] = []
        self.rows: list[tuple[str, list[tuple[str, str]]]] = []
        self.in_popover: str | None = None
        self.popover_links: dict[str, list[str]] = {}
        self._cell = False
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.links += [v for k in ("href", "src", "action", "data", "poster") if (v := found.get(k))]
        if found.get("id"):
            self.ids.add(str(found["id"]))
        if "popover" in found:
            self.in_popover = str(found["id"])
        if found.get("popovertarget"):
            self.targets.add(str(found["popovertarget"]))
        if tag == "a" and self.in_popover:
            self.popover_links.setdefault(self.in_popover, []).append(str(found["href"]))
        if tag in ("section", "footer"):
            self.in_popover = None
        if tag == "th" and "aria-sort" in found:
            self.heads.append(found)
        if tag == "tr" and found.get("data-method"):
            self.rows.append((str(found["data-method"]), []))
        if tag in ("td", "th") and "data-value" in found and self.rows:
            self.rows[-1][1].append((str(found["data-value"]), ""))
            self._cell = True

    def handle_endtag(self, tag: str) -> None:
        if tag in ("td", "th"):
            self._cell = False

    def handle_data(self, data: str) -> None:
        if self._cell:
            value, text = self.rows[-1][1][-1]
            self.rows[-1][1][-1] = (value, text + data)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_all(tmp_path_factory.mktemp("results"), suite(METHODS, range(3)))
    write_all(folder, suite(("KD",), range(2), benchmark="other", pair="a-b"))
    return write_all(folder, [fabricate("KD", 2, status="unreliable", benchmark="other", pair="a-b")])


@pytest.fixture(scope="module")
def built(results: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    index = build_site(results, tmp_path_factory.mktemp("out") / "site", title="A <b>title</b>")
    assert index.name == "index.html"
    return index


def all_pages(index: Path) -> list[Path]:
    return sorted(index.parent.rglob("*.html"))


def test_every_link_of_every_page_leads_to_a_file(built: Path) -> None:
    assert {p.relative_to(built.parent).parts[0] for p in all_pages(built)} == {
        *("index.html", "numbers.html", "tasks", "benchmarks", "methods", "students", "records")
    }
    pages = {path.resolve(): Page(path) for path in all_pages(built)}
    for path, page in pages.items():
        assert page.targets <= page.ids
        for link in page.links:
            if link == "data:,":
                continue
            address, _, anchor = link.partition("#")
            target = (path.parent / unquote(address)).resolve() if address else path
            assert target.is_file(), (path, link)
            assert not anchor or anchor in pages[target].ids, (path, link)


def test_nothing_comes_from_elsewhere(built: Path) -> None:
    for path in [*all_pages(built), *(built.parent / "assets").iterdir()]:
        text = path.read_text(encoding="utf-8").replace('<a href="https://arxiv.org/abs/', "")  # read, not loaded
        assert not re.search(r"https?://|@import|\burl\(", text), path


def test_a_page_loads_less_than_a_megabyte(built: Path) -> None:
    assets = sum(p.stat().st_size for p in (built.parent / "assets").iterdir())
    assert assets + max(p.stat().st_size for p in all_pages(built)) < 1_000_000


def test_title_is_escaped(built: Path) -> None:
    assert "<b>title</b>" not in built.read_text(encoding="utf-8")


@pytest.mark.parametrize(("benchmark", "pair", "count"), [("other", "a-b", 3), ("toy", "big-small", 2 + len(METHODS))])
def test_every_figure_comes_from_the_copied_records(built: Path, benchmark: str, pair: str, count: int) -> None:
    page = Page(page_of(built, benchmark))
    assert len(page.rows) == count
    for method, cells in page.rows:
        assert len(cells) == len(page.heads)
        folder = built.parent / "records" / benchmark / pair / method.lower()
        records = [read_record(p) for p in sorted(folder.glob("*.json"))]
        top1 = [r.metrics["top1"] for r in records]
        value, text = cells[3]
        assert float(value) == pytest.approx(np.mean(top1))
        assert text.strip().startswith(f"{np.mean(top1):.2f}")
        assert cells[2][1].strip() == str(len(records))
        assert float(cells[7][0]) == pytest.approx(np.mean([r.metrics["nll"] for r in records]))
        assert float(cells[9][0]) == records[0].student.parameters
        assert float(cells[11][0]) == pytest.approx(np.median([r.cost.student_latency_ms or 0 for r in records]))


def test_each_row_opens_all_of_its_records(built: Path, results: Path) -> None:
    linked = set()
    for benchmark, rows in (("other", 3), ("toy", 6)):
        page = Page(page_of(built, benchmark))
        linked |= {link for links in page.popover_links.values() for link in links}
        assert len(page.popover_links) == len(page.rows) == rows
        assert page.targets == set(page.popover_links)
    ids = {p.relative_to(results).as_posix().removesuffix(".json") for p in results.rglob("*.json")}
    assert linked == {f"../records/{identity}.html" for identity in ids}
    for identity in ids:
        copied, source = (folder / f"{identity}.json" for folder in (built.parent / "records", results))
        assert copied.read_bytes() == source.read_bytes()
        page = Page(built.parent / "records" / f"{identity}.html")
        assert f"{identity.rpartition('/')[2]}.json" in page.links


def test_heads_are_sortable(built: Path) -> None:
    text = text_of(built)
    page = Page(page_of(built))
    assert {h["aria-sort"] for h in page.heads} == {"none"}
    assert {h["data-first"] for h in page.heads} == {"ascending", "descending"}
    assert len(re.findall(r"<th scope=\"col\" aria-sort[^>]*><button type=\"button\">", text)) == len(page.heads)


def test_plots_hold_the_tables_figures(built: Path, results: Path) -> None:
    view = views_of(results)["toy-big-small-v1"]
    page = Page(page_of(built))
    by_method = dict(page.rows)
    assert {r["method"] for r in view["plot"]["rows"]} == set(by_method)
    for row in view["plot"]["rows"]:
        assert row["mean"] == float(by_method[row["method"]][3][0])
        assert row["low"] <= row["mean"] <= row["high"]
        assert row["popover"] in page.ids
        assert f'data-open="{row["popover"]}"' in view["svg"]["dots"]
        assert f"<title>{row['hover']}</title>" in view["svg"]["dots"]
    assert view["svg"]["dots"] in text_of(built)
    table = json.loads((built.parent / "tables" / "toy-big-small-v1.json").read_text())
    assert [r["method"] for r in table["rows"]] == list(by_method)


def test_page_says_how_the_numbers_are_made(built: Path) -> None:
    text = (built.parent / "numbers.html").read_text(encoding="utf-8") + text_of(built, "other")
    for said in (
        "95 % Student-t interval",
        "paired t-test",
        "Holm",
        "after the last epoch",
        "made-up CPU",
        "unreliable",
    ):
        assert said in text


def test_hostile_names_are_text(tmp_path: Path) -> None:
    evil = "<script>alert(1)</script>"
    changes = {"environment__cpu": evil, "data__name": evil, "student__name": evil}
    write_all(tmp_path / "r", [fabricate("plain", s, **changes) for s in range(2)])
    write_all(tmp_path / "r", [fabricate("K&D <i>x #1?", s) for s in range(2)])
    index = build_site(tmp_path / "r", tmp_path / "site")
    for path in all_pages(index):
        text = path.read_text(encoding="utf-8")
        assert evil not in text
        assert "<i>" not in text
    test_every_link_of_every_page_leads_to_a_file(index)


def test_benchmarks_can_be_chosen(results: Path, tmp_path: Path) -> None:
    index = build_site(results, tmp_path / "site", benchmarks=["other"])
    assert not (index.parent / "records" / "toy").exists()


def test_page_without_latency_has_no_latency_plot(tmp_path: Path) -> None:
    write_all(tmp_path / "r", [fabricate("plain", s, cost__student_latency_ms=None) for s in range(2)])
    text = text_of(build_site(tmp_path / "r", tmp_path / "site"))
    assert 'data-plot="dots"' in text
    assert 'data-plot="latency"' not in text


def test_rebuild_replaces_what_it_made_and_nothing_else(results: Path, tmp_path: Path) -> None:
    out = tmp_path / "site"
    first = build_site(results, out).read_bytes()
    (out / "mine.txt").write_text("keep me")
    build_site(results, out, benchmarks=["other"])
    assert (out / "mine.txt").read_text() == "keep me"
    assert not (out / "records" / "toy").exists()
    assert build_site(results, out).read_bytes() == first  # the same records give the same bytes
    assert sorted(p.name for p in tmp_path.iterdir()) == ["site"]  # no temporary folder stays


def test_foreign_files_are_not_overwritten(results: Path, tmp_path: Path) -> None:
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "index.html").write_text("somebody's")
    with pytest.raises(OutputError, match=r"index\.html: was not made by this command"):
        build_site(results, tmp_path / "site")
    assert [p.name for p in (tmp_path / "site").iterdir()] == ["index.html"]
    assert (tmp_path / "site" / "index.html").read_text() == "somebody's"


@pytest.mark.parametrize("place", [".", "page", "toy/page"])
def test_page_inside_the_records_is_refused(results: Path, place: str) -> None:
    before = sorted(results.rglob("*"))
    with pytest.raises(OutputError, match="lies in the folder of records"):
        build_site(results, results / place)
    assert sorted(results.rglob("*")) == before


def test_out_that_is_a_file_is_refused(results: Path, tmp_path: Path) -> None:
    (tmp_path / "site").write_text("a file")
    with pytest.raises(OutputError, match="is a file"):
        build_site(results, tmp_path / "site")
    with pytest.raises(OutputError, match="cannot write"):
        build_site(results, tmp_path / "site" / "below")


def test_failed_build_leaves_the_old_page(results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "site"
    old = build_site(results, out).read_bytes()
    with pytest.raises(NoResults):
        build_site(tmp_path / "absent", out)

    def full_disk(made: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "_write_assets", full_disk)
    with pytest.raises(OutputError, match="No space left"):
        build_site(results, out)
    assert (out / "index.html").read_bytes() == old
    assert sorted(p.name for p in tmp_path.iterdir()) == ["site"]


def test_failed_move_puts_the_old_page_back(results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "site"
    build_site(results, out)
    before = {p: p.read_bytes() for p in sorted(out.rglob("*")) if p.is_file()}
    real = Path.replace

    def replace(self: Path, target: Path) -> Path:
        if self.name == "tables" and self.parent.name == "new":
            raise OSError(13, "Permission denied")
        return real(self, target)

    monkeypatch.setattr(Path, "replace", replace)
    with pytest.raises(OutputError, match="Permission denied"):
        build_site(results, out, benchmarks=["other"])
    assert {p: p.read_bytes() for p in sorted(out.rglob("*")) if p.is_file()} == before


def test_building_imports_no_torch(results: Path, tmp_path: Path) -> None:
    code = (
        "import sys; from limbeck.leaderboard import build_site, show_tables; from rich.console import Console; "
        f"build_site({str(results)!r}, {str(tmp_path / 'site')!r}); "
        f"show_tables({str(results)!r}, Console(quiet=True)); "
        "print([m for m in ('torch', 'mmengine', 'timm', 'pandas') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith("[]")
