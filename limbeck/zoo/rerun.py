"""How a record's run is made again, and what paper its method is from."""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from shlex import quote

from limbeck.engine.config import PLAIN, is_teacher, load_pair
from limbeck.engine.record import RunRecord
from limbeck.engine.registry import TASK_PACKAGES
from limbeck.engine.suite import load_suite, suites
from limbeck.errors import UserError


def rerun_command(record: RunRecord) -> str | None:
    """The command that makes the run again and compares, or trains a teacher again; None where no suite has its pair.

    A student's is `limbeck reproduce`, which trains its teacher and plain twin too and compares cell by cell.
    """
    for name, config in _pairs(record.benchmark, record.pair):
        if is_teacher(record.method):
            return f"limbeck train {config} --method {record.method} --seed {record.seed}"
        only = "" if record.method == PLAIN else f" --only {quote(record.method.partition('@')[0])}"
        if only and record.method.partition("@")[0].lower() not in _methods(name, config):
            continue
        return f"limbeck reproduce {name}{only or f' --only {PLAIN}'}"
    return None


@cache
def _pairs(benchmark: str, pair: str) -> list[tuple[str, str]]:
    """Suites that have a benchmark pair, with its config; first that of the benchmark's name, then small ones."""
    found: dict[tuple[str, str], tuple[bool, bool, int]] = {}
    for name in suites():
        suite = load_suite(name)
        for group in suite.groups:
            if _named(group.config) == (benchmark, pair):
                found.setdefault((name, group.config), (name != benchmark, bool(group.vary), len(suite.groups)))
    return sorted(found, key=lambda at: (found[at], at))


@cache
def _named(config: str) -> tuple[str, str] | None:
    """A config's benchmark and pair; None where its optional dependencies are absent."""
    try:
        pair = load_pair(config)
    except UserError:
        return None
    return pair.benchmark, pair.pair


@cache
def _methods(suite: str, config: str) -> set[str]:
    groups = [g for g in load_suite(suite).groups if g.config == config]
    names = [n for g in groups for n in (*(g.methods or load_pair(config).method_names()), *(v.method for v in g.vary))]
    return {n.partition("@")[0].lower() for n in names}


@dataclass(frozen=True)
class MethodPaper:
    """A registered method that a run used.

    title: the first line of its file, without name and arXiv id; '' for a user's own method.
    """

    name: str
    title: str
    arxiv: str | None


def method_papers(record: RunRecord) -> list[MethodPaper]:
    """The methods that a run's links name, in their order, each with the first line of its file and its arXiv id."""
    names = dict.fromkeys(str(link["type"]) for link in record.config.get("model", {}).get("links", []))
    return [_paper(name) for name in names]


def _paper(name: str) -> MethodPaper:
    text = _docs().get(name, "")
    title = " ".join(text.strip().split("\n\n")[0].split())
    arxiv = re.search(r"arXiv[: ](\d{4}\.\d{4,5})", text)
    plain = re.sub(r"\s*\(arXiv[^)]*\)", "", title).removeprefix(f"{name}:").strip(" .")
    return MethodPaper(name, plain, None if arxiv is None else arxiv[1])


@cache
def _docs() -> dict[str, str]:
    """The docstring of each method's file, by the names of the classes in it; the files are read, not imported."""
    found: dict[str, str] = {}
    root = Path(str(files("limbeck")))
    for package in TASK_PACKAGES:
        for path in sorted(root.joinpath(*package.split("."), "methods").glob("*.py")):
            tree = ast.parse(path.read_text(encoding="utf-8"))
            text = ast.get_docstring(tree) or ""
            found |= {node.name: text for node in tree.body if isinstance(node, ast.ClassDef)}
    return found
