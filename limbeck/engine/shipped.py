"""What Limbeck ships, read as text: where a registered class is written down, and which configs have a pair.

Nothing is imported or run for it: loading more than a hundred configs for their names would take seconds.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from inspect import cleandoc
from pathlib import Path
from shlex import quote

from limbeck.engine.config import shipped_configs

ROOMS = ("methods", "strategies", "loops")
_CLASS = re.compile(r"^class (\w+)", re.MULTILINE)
_BASE = re.compile(r'^_base_ = \[?"(.+?)"', re.MULTILINE)


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


@cache
def pair_configs() -> Mapping[tuple[str, str], tuple[str, ...]]:
    """Names of the shipped configs by the benchmark and pair that they, or what they are based on, state."""
    found: dict[tuple[str, str], tuple[str, ...]] = {}
    for name, path in shipped_configs().items():
        benchmark, pair = _stated(path, "benchmark"), _stated(path, "pair")
        if benchmark is not None and pair is not None:
            found[benchmark, pair] = (*found.get((benchmark, pair), ()), name)
    return found


def reproduce_command(benchmark: str, pair: str, method: str, seed: int) -> str | None:
    """The command that makes a run again, with what it needs, and compares; None for a pair that is not shipped."""
    if (benchmark, pair) not in pair_configs():
        return None
    return f"limbeck bench reproduce {quote(f'{benchmark}/{pair}')} --cells {quote(f'{method}/{seed}')}"


def _stated(path: Path, key: str) -> str | None:
    text = path.read_text(encoding="utf-8")
    match = re.search(rf'^{key} = "(.+)"', text, re.MULTILINE)
    if match is not None:
        return match[1]
    base = _BASE.search(text)
    beside = None if base is None else path.parent / base[1]
    return _stated(beside, key) if beside is not None and beside.is_file() else None
