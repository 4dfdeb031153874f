"""The index: which students there are, and where their weights lie."""

from __future__ import annotations

import os
from pathlib import Path
from typing import get_args

from limbeck.engine.record import Task
from limbeck.engine.weights import check_sha256
from limbeck.errors import ConfigError, CorruptFile, UnknownName
from limbeck.zoo.card import Card, read_card

SHIPPED = Path(__file__).parent
CARDS, WEIGHTS = "cards", "weights"


def own_zoo() -> Path | None:
    """The folder with cards/ and weights/ that $LIMBECK_ZOO names, or None."""
    named = os.environ.get("LIMBECK_ZOO")
    return Path(named) if named else None


def roots(zoo_dir: str | Path | None = None) -> list[Path]:
    """Folders that hold cards/ and weights/: `zoo_dir` alone where given, else $LIMBECK_ZOO and the shipped zoo.

    Raises: ConfigError for a folder without cards.
    """
    named = own_zoo() if zoo_dir is None else Path(zoo_dir)
    if named is not None and not (named / CARDS).is_dir():
        origin = "LIMBECK_ZOO names" if zoo_dir is None else "the zoo folder is"
        raise ConfigError(
            f"{origin} {named}, which has no folder {CARDS!r}; name the folder above {CARDS}/ and {WEIGHTS}/"
        )
    if zoo_dir is not None and named is not None:
        return [named]
    return [SHIPPED] if named is None else [named, SHIPPED]


def entries(zoo_dir: str | Path | None = None) -> dict[str, tuple[Card, Path]]:
    """Every card by name, with the folder that it is from; the first folder wins where two have one name.

    Raises: CorruptFile at the first damaged card.
    """
    found: dict[str, tuple[Card, Path]] = {}
    for root in roots(zoo_dir):
        for path in sorted((root / CARDS).glob("*.json")):
            if not path.name.startswith(".") and path.stem not in found:
                found[path.stem] = (read_card(path), root)
    return dict(sorted(found.items()))


def list_students(
    task: str | None = None, method: str | None = None, *, zoo_dir: str | Path | None = None
) -> list[Card]:
    """Cards of a task and a method (in any case of letters), by name; all of them where neither is given.

    Raises: UnknownName for a task that does not exist; CorruptFile at a damaged card.
    """
    if task is not None and task not in get_args(Task):
        raise UnknownName("task", task, get_args(Task))
    cards = [card for card, _ in entries(zoo_dir).values()]
    return [
        card
        for card in cards
        if task in (None, card.task) and (method is None or method.lower() == card.method.lower())
    ]


def entry(name: str, *, zoo_dir: str | Path | None = None) -> tuple[Card, Path]:
    """A student's card and the folder that it is from. Raises: UnknownName with near names."""
    known = entries(zoo_dir)
    if name not in known:
        raise UnknownName("student", name, known, "in the zoo")
    return known[name]


def find(name: str, *, zoo_dir: str | Path | None = None) -> Card:
    """A student's card.

    Raises: UnknownName with near names.
    """
    return entry(name, zoo_dir=zoo_dir)[0]


def weights_path(name: str, *, zoo_dir: str | Path | None = None) -> Path:
    """A student's weight file, whose sha256 is that of its card.

    Raises: UnknownName; CorruptFile with both hashes when the file is another one, or when it is absent.
    """
    card, root = entry(name, zoo_dir=zoo_dir)
    path = root / WEIGHTS / card.file
    if not path.is_file():
        raise CorruptFile(
            f"{path}: the weights of {name} are absent, expected sha256 {card.sha256[:12]}…; get them again"
        )
    check_sha256(path, card.sha256)
    return path


def weight_files(*, zoo_dir: str | Path | None = None) -> dict[str, Path]:
    """The weight files that are there, by the sha256 that their cards state; the bytes are not looked at."""
    paths = ((card.sha256, root / WEIGHTS / card.file) for card, root in entries(zoo_dir).values())
    return {sha256: path for sha256, path in paths if path.is_file()}
