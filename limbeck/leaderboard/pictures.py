"""Pictures beside the page: of which pairs, whose weights, where their files lie, and whether they are whole."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from limbeck.engine.record import Sha256
from limbeck.engine.weights import atomic_path, sha256_file, write_json
from limbeck.errors import ConfigError, UnknownName
from limbeck.leaderboard.checks import ResultsError
from limbeck.leaderboard.store import Group, Results

if TYPE_CHECKING:
    from PIL.Image import Image


class StalePicture(ResultsError):
    """A picture beside the page was drawn for other records or weights, or is not whole."""


class Strict(BaseModel):
    """A part of a description."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Description(Strict):
    """What lies beside a picture as JSON: the group that it is of, and the picture's hash and size."""

    benchmark: str
    benchmark_version: int
    pair: str
    picture_sha256: Sha256
    size: tuple[int, int] = Field(description="width and height of the picture in pixels")


Described = TypeVar("Described", bound=Description)


def groups_of(results: Results, benchmarks: Sequence[str], pair: str | None, tasks: Sequence[str]) -> list[Group]:
    """The groups of some benchmarks, or those of one pair alone.

    Args:
        tasks: those that are drawn.
    Raises: UnknownName for a benchmark or pair; ConfigError for a task that is not drawn.
    """
    groups = [g for name in benchmarks for g in results.benchmark(name)]
    if pair is not None:
        known = {g.pair for g in groups}
        groups = [g for g in groups if g.pair == pair]
        if not groups:
            raise UnknownName("pair", pair, known, f"of {', '.join(benchmarks)}")
    for group in groups:
        if group.sample.task not in tasks:
            raise ConfigError(
                f"pictures are drawn for {' and '.join(map(_words, tasks))}; {group.benchmark} is "
                f"{_words(group.sample.task)}; name a benchmark of a task that is drawn"
            )
    return groups


def _words(task: str) -> str:
    return task.replace("-", " ")


def find_weights(identity: str, sha256: str | None, weights: Mapping[str, Path], runs: str | Path | None) -> Path:
    """The file of a record's weights: the zoo's by its sha256, else that of a folder of runs.

    Whether a file is what the record says is checked when it is read.

    Args:
        weights: files by sha256, such as the zoo's.
        runs: '<record id>/student.safetensors' lies below it.
    Raises: ConfigError where neither has them.
    """
    path = weights.get(sha256 or "")
    if path is not None:
        return path
    if runs is None:
        raise ConfigError(
            f"the zoo has no weights of {identity}; name the folder of the suite's runs with --runs, such as "
            f"out/{identity.partition('/')[0]}/runs"
        )
    path = Path(runs) / identity / "student.safetensors"
    if not path.is_file():
        raise ConfigError(
            f"neither the zoo nor {path} has the weights of {identity}; run it again, or name other --runs"
        )
    return path


def picture_files(site: str | Path, folder: str, group: Group) -> tuple[Path, Path]:
    """The picture of a group in a folder of a site, and the JSON beside it."""
    stem = f"{group.pair}.v{group.version}"
    return Path(site) / folder / group.benchmark / f"{stem}.png", Path(site) / folder / group.benchmark / f"{stem}.json"


def save_picture(picture: Image, path: Path) -> str:
    """Write a picture as PNG, whole or not at all; returns its sha256.

    Raises: OutputError.
    """
    with atomic_path(path) as temporary:
        picture.save(temporary, format="PNG")
    return sha256_file(path)


def save_description(found: Description, beside: Path) -> None:
    """Write what lies beside a picture, whole or not at all.

    Raises: OutputError.
    """
    write_json(beside, found.model_dump(mode="json"))


def read_description(kind: type[Described], picture: Path, beside: Path, again: str) -> Described | None:
    """What lies beside a picture; None where nothing was drawn.

    Args:
        again: what to do when a file is not whole.
    Raises: StalePicture when it is not.
    """
    if not beside.is_file():
        return None
    try:
        found = kind.model_validate_json(beside.read_bytes())
    except (OSError, ValidationError) as error:
        raise StalePicture(f"{beside}: not a whole description of a picture, which is not shown; {again}") from error
    if not picture.is_file() or sha256_file(picture) != found.picture_sha256:
        raise StalePicture(f"{picture}: not the picture that its JSON describes, and not shown; {again}")
    return found
