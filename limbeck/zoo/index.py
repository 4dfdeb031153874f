"""The index: which students there are, and where their weights lie."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import get_args

from limbeck.engine.record import Task
from limbeck.errors import ConfigError, UnknownName
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
    task: str | None = None,
    method: str | None = None,
    *,
    max_params: int | None = None,
    min_metric: float | str | None = None,
    zoo_dir: str | Path | None = None,
) -> list[Card]:
    """Cards of a task and a method (in any case of letters), by name; all of them where nothing is given.

    Args:
        max_params: only students with at most so many parameters.
        min_metric: only students whose primary metric is at least this; or 'miou=50', the one that is named.
    Raises: UnknownName for a task that does not exist, or a metric that no card has; ConfigError for no number;
        CorruptFile at a damaged card.
    """
    if task is not None and task not in get_args(Task):
        raise UnknownName("task", task, get_args(Task))
    cards = [card for card, _ in entries(zoo_dir).values()]
    least = _least(min_metric, cards)
    return [
        card
        for card in cards
        if task in (None, card.task)
        and (method is None or method.lower() == card.method.lower())
        and (max_params is None or card.parameters <= max_params)
        and least(card)
    ]


def _least(min_metric: float | str | None, cards: list[Card]) -> Callable[[Card], bool]:
    """Whether a card reaches a metric."""
    if min_metric is None:
        return lambda card: True
    name, separator, number = str(min_metric).rpartition("=")
    try:
        least = float(number)
    except ValueError as error:
        raise ConfigError(f"min_metric is a number, or NAME=NUMBER such as top1=90; got {min_metric!r}") from error
    if not separator:
        return lambda card: card.value >= least
    known = {metric for card in cards for metric in card.metrics}
    if name not in known:
        raise UnknownName("metric", name, known)
    return lambda card: name in card.metrics and card.metrics[name] >= least


def find(name: str, *, revision: str | None = None, zoo_dir: str | Path | None = None) -> Card:
    """A student's card; `name` is one of the zoo, or an address or a path as `limbeck.zoo.sources` says.

    Raises: UnknownName with near names; for an address also what `sources.locate` raises.
    """
    from limbeck.zoo.sources import locate

    return locate(name, revision=revision, zoo_dir=zoo_dir).card


def weights_path(name: str, *, revision: str | None = None, zoo_dir: str | Path | None = None) -> Path:
    """A student's weight file, whose sha256 is that of its card; that of an address is fetched into the cache.

    Raises: UnknownName; CorruptFile with both hashes when the file is another one, or when it is absent; for an address
        also what `sources.locate` and `sources.weights` raise.
    """
    from limbeck.zoo.sources import locate, weights

    return weights(locate(name, revision=revision, zoo_dir=zoo_dir))


def weight_files(*, zoo_dir: str | Path | None = None) -> dict[str, Path]:
    """The weight files that are there, by the sha256 that their cards state; the bytes are not looked at."""
    paths = ((card.sha256, root / WEIGHTS / card.file) for card, root in entries(zoo_dir).values())
    return {sha256: path for sha256, path in paths if path.is_file()}
