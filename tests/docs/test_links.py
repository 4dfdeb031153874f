"""What the pages mention exists: files, headings, commands with their options, make targets, defaults, weights."""

from __future__ import annotations

import json
import re
import shlex
import sys
from inspect import signature
from pathlib import Path
from typing import Any

import pytest

from limbeck import __version__
from limbeck.engine.config import load_pair
from limbeck.engine.registry import METHODS
from tests.docs.pages import ROOT, blocks, pages

_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
_CODE = re.compile(r"`([^`\n]+)`")
_PLACE = re.compile(r"^(?:limbeck|benchmarks|tests|docs|requirements)/[\w./-]+$")
PACKAGES = ["vision", "segmentation", "detection", "pointcloud", "multimodal.vlm", "multimodal.diffusion"]
METHOD_PAGES = pytest.mark.parametrize("package", PACKAGES)
PAGES = pytest.mark.parametrize("page", pages(), ids=lambda p: p.relative_to(ROOT).as_posix())


def prose(page: Path) -> str:
    """A page without its fenced blocks."""
    return re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as MkDocs and GitHub make them."""
    titles = re.findall(r"^#+ +(.+)$", prose(page), flags=re.MULTILINE)
    return {re.sub(r"[\s-]+", "-", re.sub(r"[^\w\s-]", "", title.lower()).strip()) for title in titles}


def commands(page: Path) -> list[list[str]]:
    """The command lines of a page's sh blocks, each as words."""
    lines = "\n".join(b.text for b in blocks(page) if b.language == "sh").replace("\\\n", " ").splitlines()
    words = [shlex.split(part, comments=True) for line in lines for part in re.split(r"&&|\|", line)]
    return [w for w in words if w]


def arguments(words: list[str]) -> list[str] | None:
    """What is given to limbeck, where a command line runs it."""
    for index, word in enumerate(words):
        if word == "limbeck" and words[index - 1] == "-m":
            return words[index + 1 :]
    return words[1:] if Path(words[0]).name == "limbeck" else None


def parse(args: list[str]) -> str:
    """Take a command line apart by typer's own parser, without running it; gives the command's name.

    Raises: a usage error of the parser for an unknown command or option, or an argument too many or too few.
    """
    import typer

    from limbeck.cli.app import app

    command: Any = typer.main.get_command(app)
    context, name = None, "limbeck"
    while hasattr(command, "commands"):
        context = command.make_context(name, args[:1], parent=context)
        name, command, args = command.resolve_command(context, args)
    command.make_context(name, list(args), parent=context)
    return name


@PAGES
def test_relative_links_lead_to_files_and_headings(page: Path) -> None:
    for link in _LINK.findall(prose(page)):
        if "://" in link:
            continue
        place, _, anchor = link.partition("#")
        target = page if not place else (page.parent / place).resolve()
        assert target.exists(), f"{page}: {link}"
        assert not anchor or anchor in anchors(target), f"{page}: {link}: headings are {sorted(anchors(target))}"


@PAGES
def test_files_that_are_mentioned_exist(page: Path) -> None:
    for code in _CODE.findall(prose(page)):
        if _PLACE.match(code):
            assert (ROOT / code).exists(), f"{page}: {code}"


@PAGES
def test_commands_parse(page: Path) -> None:
    spelled = [shlex.split(code) for code in _CODE.findall(prose(page)) if re.match(r"limbeck \w.* -", code)]
    for words in [*commands(page), *spelled]:
        args = arguments(words)
        if args is not None:
            parse(args)
        elif words[0] == "make":
            targets = [word for word in words[1:] if "=" not in word]
            known = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE)
            assert set(targets) <= set(known), f"{page}: {words}"


@pytest.mark.parametrize("line", ["zoo predikt x", "zoo list --tsak x", "bench run", "leaderboard compare"])
def test_commands_that_are_wrong_are_refused(line: str) -> None:
    with pytest.raises(Exception, match=r"No such|Missing"):
        parse(line.split())


def test_commands_are_looked_at() -> None:
    assert sum(arguments(words) is not None for page in pages() for words in commands(page)) > 20


@METHOD_PAGES
def test_package_readme_has_the_methods_and_their_defaults(package: str) -> None:
    found = {name: rest for name, *rest in method_rows(package)}
    shipped = {name: METHODS.lookup(name) for name in METHODS.names() if in_package(name, package)}
    assert found.keys() == shipped.keys()
    for name, (source, taps, weight) in found.items():
        kind = shipped[name]
        assert re.findall(r"`([^`]+)`", taps) == [student for _, student in kind.default_taps], name
        assert float(weight) == default_of(kind, "weight"), name
        file = Path(str(sys.modules[kind.__module__].__file__))
        assert source in file.read_text(encoding="utf-8").splitlines()[0], name


@METHOD_PAGES
def test_package_readme_marks_and_quotes_what_is_ours(package: str) -> None:
    text = readme(package)
    marked = set(re.findall(r"^\| `(\w+)` \| [^|]+†, ", text, flags=re.MULTILINE))
    quoted = dict(re.findall(r"^- `(\w+)`: (.+)$", text, flags=re.MULTILINE))
    shipped = {name: METHODS.lookup(name).assumption for name in METHODS.names() if in_package(name, package)}
    said = {name: assumption for name, assumption in shipped.items() if assumption}
    assert marked == said.keys()
    assert quoted == said


def readme(package: str) -> str:
    return (ROOT / "limbeck" / package.replace(".", "/") / "README.md").read_text(encoding="utf-8")


def method_rows(package: str) -> list[tuple[str, ...]]:
    """(name, source, taps, weight) of every row of a README's table of methods."""
    row = r"^\| `(\w+)` \| [^|]+, ([^,|]+) \| (.+?) \| ([\d.]+) \|"
    return re.findall(row, readme(package).partition("## Methods")[2], flags=re.MULTILINE)


def in_package(name: str, package: str) -> bool:
    return METHODS.lookup(name).__module__.startswith(f"limbeck.{package}.methods.")


def default_of(kind: type, option: str) -> Any:
    """The default of a constructor's keyword, which a base class may have."""
    steps = [vars(c)["__init__"] for c in kind.__mro__ if "__init__" in vars(c)]
    return next(signature(step).parameters[option].default for step in steps if option in signature(step).parameters)


def test_numbers_page_has_the_values_of_the_selection() -> None:
    said = json.loads((ROOT / "benchmarks" / "selection" / "digits.json").read_text(encoding="utf-8"))
    text = (ROOT / "docs" / "numbers.md").read_text(encoding="utf-8")
    table = text.split("<!-- selection -->")[1].split("<!-- /selection -->")[0]
    rows = [[c.strip() for c in line.strip("|").split("|")] for line in table.strip().splitlines()[2:]]
    assert f"the plain student has {said['plain']:.2f}" in text
    assert [row[0] for row in rows] == list(said["chosen"])
    methods = load_pair("vision/digits").methods
    for name, published, *values, taken in rows:
        chosen = said["chosen"][name]
        assert [v.strip("*") for v in values] == [f"{v:.2f}" for v in chosen["validation"].values()]
        best = list(chosen["validation"]).index(str(chosen["factor"]))
        assert [v.startswith("**") for v in values] == [i == best for i in range(len(values))]
        assert float(published) * chosen["factor"] == pytest.approx(float(taken))
        assert methods[name].links[-1]["weight"] == pytest.approx(float(taken))


def test_search_page_has_the_values_of_the_correlation() -> None:
    said = json.loads((ROOT / "benchmarks" / "search" / "fashion-mnist.json").read_text(encoding="utf-8"))
    text = (ROOT / "docs" / "search.md").read_text(encoding="utf-8")
    block = text.split("<!-- correlation -->")[1].split("<!-- /correlation -->")[0]
    rows = [[c.strip() for c in line.strip("|").split("|")] for line in block.strip().splitlines() if "---" not in line]
    found = {row[0]: (row[1], row[4]) for row in rows if row[0] in said["correlations"]}
    wanted = {
        name: tuple(f"{c[kind]['value']:+.3f}" for kind in ("spearman", "kendall"))
        for name, c in said["correlations"].items()
    }
    assert found == wanted
    for pick in said["picks"]:
        row = next(r for r in rows if r[0] == f"{pick['budget']:,} parameters")
        assert row[3:] == [f"{value:.2f}" for value in pick["values"].values()]


def test_citation_has_the_version() -> None:
    assert f"version: {__version__}" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")
