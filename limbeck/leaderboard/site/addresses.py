"""Addresses: which page of the site shows a task, benchmark, method, student or record, from the site's root."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from urllib.parse import quote

from limbeck.engine.config import PLAIN
from limbeck.engine.record import RunRecord
from limbeck.engine.variant import split_variant
from limbeck.leaderboard.table import Table

TASKS = {
    "image-classification": "Image classification",
    "object-detection": "Object detection",
    "semantic-segmentation": "Semantic segmentation",
    "3d-object-detection": "LiDAR detection",
    "vlm-classification": "Vision-language models",
    "image-generation": "Image generation",
}


SHORT = {
    "image-classification": "Classification",
    "object-detection": "Detection",
    "semantic-segmentation": "Segmentation",
    "3d-object-detection": "LiDAR",
    "vlm-classification": "Vision-language",
    "image-generation": "Generation",
}


def task_title(task: str) -> str:
    """A task in words."""
    return TASKS.get(task, task.replace("-", " ").capitalize())


def slug(text: str) -> str:
    """A name that is safe in ids and file names: 'KD-LS' is 'kd-ls'."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-") or "x"


def slugs(names: Iterable[str]) -> list[str]:
    """A distinct slug for each name."""
    taken: dict[str, int] = {}
    made = []
    for name in names:
        base = slug(name)
        taken[base] = taken.get(base, 0) + 1
        made.append(base if taken[base] == 1 else f"{base}-{taken[base]}")
    return made


@dataclass(frozen=True)
class Addresses:
    """What has a page: tasks, slugs of benchmarks and of methods, by name in lower case, and students by record id.

    An address of something that has none is ''.
    """

    tasks: frozenset[str]
    benchmarks: Mapping[str, str]
    methods: Mapping[str, str]
    students: Mapping[str, str]

    def task(self, task: str) -> str:
        """A task's page."""
        return f"tasks/{slug(task)}.html" if task in self.tasks else ""

    def benchmark(self, name: str, section: str = "") -> str:
        """A benchmark's page, or one pair's part of it."""
        found = self.benchmarks.get(name)
        return f"benchmarks/{found}.html" + (f"#{section}" if section else "") if found else ""

    def method(self, name: str) -> str:
        """A method's page, also of its variants; teachers and the plain student have none."""
        found = self.methods.get(split_variant(name)[0].lower() if "@" in name else name.lower())
        return f"methods/{found}.html" if found else ""

    def student(self, identity: str) -> str:
        """The page of the student that a record made."""
        name = self.students.get(identity)
        return f"students/{quote(name)}.html" if name else ""

    def record(self, identity: str) -> str:
        """A record's page."""
        return f"records/{quote(identity)}.html"


def addresses_of(tables: Iterable[Table], cards: Iterable[Mapping[str, str]]) -> Addresses:
    """The pages of some tables' benchmarks and methods, and of some cards."""
    listed = list(tables)
    benchmarks = list(dict.fromkeys(t.benchmark for t in listed))
    rows = (r.method.lower() for t in listed for r in t.rows if r.role not in ("teacher", PLAIN))
    names = list(dict.fromkeys(rows))
    return Addresses(
        frozenset(t.task for t in listed),
        dict(zip(benchmarks, slugs(benchmarks), strict=True)),
        dict(zip(names, slugs(names), strict=True)),
        {card["record"]: card["name"] for card in cards},
    )


def shown_cards(cards: Iterable[Mapping[str, str]], records: Mapping[str, RunRecord]) -> list[Mapping[str, str]]:
    """The cards whose record is there and has the card's weights: others are of other runs."""
    return [
        card for card in cards if card["record"] in records and records[card["record"]].student_sha256 == card["sha256"]
    ]
