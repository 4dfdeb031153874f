"""Where a method is written down: its file and docstrings, read as text, so that nothing is imported for a page."""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from inspect import cleandoc
from pathlib import Path

ROOMS = ("methods", "strategies", "loops")
_CLASS = re.compile(r"^class (\w+)", re.MULTILINE)
_ARXIV = re.compile(r"arXiv:? ?(\d{4}\.\d{4,5})")


@dataclass(frozen=True)
class Source:
    """A registered class: its name, its file below the package's parent, what file and class say."""

    name: str
    path: str
    module: str
    text: str


@cache
def registered_files() -> Mapping[str, Path]:
    """Files of the classes below the rooms of every task package, by class name; the first file of a name counts."""
    root = Path(str(files("limbeck")))
    found: dict[str, Path] = {}
    for room in ROOMS:
        for path in sorted(root.glob(f"**/{room}/*.py")):
            for name in _CLASS.findall(path.read_text(encoding="utf-8")):
                found.setdefault(name, path)
    return found


@cache
def find_source(name: str) -> Source | None:
    """The source of a registered name; None where no file has a class of that name."""
    path = registered_files().get(name)
    if path is None:
        return None
    tree = ast.parse(path.read_text(encoding="utf-8"))
    made = next(n for n in tree.body if isinstance(n, ast.ClassDef) and n.name == name)
    place = path.relative_to(Path(str(files("limbeck"))).parent).as_posix()
    return Source(name, place, _text(tree), _text(made))


def _text(node: ast.Module | ast.ClassDef) -> str:
    return cleandoc(ast.get_docstring(node) or "")


def linked_text(text: str) -> list[tuple[str, str | None]]:
    """A text in parts, each with the address that it links to: 'arXiv 1503.02531' to its abstract."""
    parts: list[tuple[str, str | None]] = []
    end = 0
    for match in _ARXIV.finditer(text):
        parts += [(text[end : match.start()], None), (match[0], f"https://arxiv.org/abs/{match[1]}")]
        end = match.end()
    return [(said, link) for said, link in (*parts, (text[end:], None)) if said]
