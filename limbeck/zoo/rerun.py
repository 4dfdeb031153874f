"""How a record's run is made again, and what paper its method is from."""

from __future__ import annotations

import re
from dataclasses import dataclass

from limbeck.engine.record import RunRecord
from limbeck.engine.shipped import find_source, reproduce_command


def rerun_command(record: RunRecord) -> str | None:
    """The command that makes the run again, with what it needs, and compares; None for a pair that is not shipped."""
    return reproduce_command(record.benchmark, record.pair, record.method, record.seed)


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
    source = find_source(name)
    text = "" if source is None else source.module
    title = " ".join(text.strip().split("\n\n")[0].split())
    arxiv = re.search(r"arXiv[: ](\d{4}\.\d{4,5})", text)
    plain = re.sub(r"\s*\(arXiv[^)]*\)", "", title).removeprefix(f"{name}:").strip(" .")
    return MethodPaper(name, plain, None if arxiv is None else arxiv[1])
