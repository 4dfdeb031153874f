"""Pictures beside the page: of which pairs and runs, whose weights, where files lie, whether they are whole."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar
from urllib.parse import quote

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from limbeck.engine.record import RunRecord, Sha256
from limbeck.engine.weights import atomic_path, sha256_file, write_json
from limbeck.errors import ConfigError, UnknownName
from limbeck.leaderboard.checks import ResultsError
from limbeck.leaderboard.store import Group, Results

if TYPE_CHECKING:
    from PIL.Image import Image


DRAW_SEED = 0  # of samples that are drawn at random


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


class RunDescription(Description):
    """What lies beside a picture of one run."""

    method: str
    record: str
    seed: int
    config_hash: Sha256
    student_sha256: Sha256 = Field(description="of the record")


Described = TypeVar("Described", bound=Description)
Chosen = TypeVar("Chosen")
OfRun = TypeVar("OfRun", bound=RunDescription)


class Drawable(Protocol):
    """A plan of one picture."""

    @property
    def group(self) -> Group:
        """Whose picture it is."""
        ...

    def described(self) -> dict[str, Any]:
        """Fields of the picture's `Description` but for those of the picture."""
        ...


@dataclass(frozen=True)
class RunPlan:
    """A picture of one run to draw: its record, and the files of its teachers by their record ids."""

    group: Group
    record: RunRecord
    teachers: Mapping[str, Path]

    def described(self) -> dict[str, Any]:
        """Fields of `RunDescription` but for those of the picture."""
        one = self.record
        place = dict(benchmark=one.benchmark, benchmark_version=one.benchmark_version, pair=one.pair)
        run = dict(method=one.method, record=one.id, seed=one.seed, config_hash=one.config_hash)
        return place | run | dict(student_sha256=one.student_sha256)


def plan_runs(
    results: Results,
    benchmarks: Sequence[str],
    choose: Callable[[Group], RunRecord],
    *,
    tasks: Sequence[str],
    weights: Mapping[str, Path],
    runs: str | Path | None = None,
    pair: str | None = None,
) -> list[RunPlan]:
    """What is to be drawn for the pairs of some benchmarks that have a run to draw; nothing, unless it can be for all.

    Args:
        choose: gives a group's run, or raises ConfigError where it has none.
        tasks: those that are drawn.
        weights: files by sha256, such as the zoo's.
        runs: folder of a suite's runs, '<record id>/student.safetensors' below it, for weights that are not there.
        pair: this one alone.
    Raises: UnknownName for the pair; ConfigError for a task that is not drawn, where no pair has such a run, and where
        a teacher's weights are missing.
    """
    found = groups_with(groups_of(results, benchmarks, pair, tasks), choose)
    return [RunPlan(group, record, _teachers(record, weights, runs)) for group, record in found]


def groups_with(groups: Sequence[Group], choose: Callable[[Group], Chosen]) -> list[tuple[Group, Chosen]]:
    """The groups that have something to draw, and what it is.

    Args:
        choose: gives what of a group is drawn, or raises ConfigError where there is nothing.
    Raises: ConfigError where no group has.
    """
    found: list[tuple[Group, Chosen]] = []
    lacking: list[ConfigError] = []
    for group in groups:
        try:
            found.append((group, choose(group)))
        except ConfigError as error:
            lacking.append(error)
    if lacking and not found:
        raise lacking[0]
    return found


def linked_runs(group: Group, link: str) -> Iterator[tuple[RunRecord, Mapping[str, Any]]]:
    """Of each method with a link of a registered type the run of the lowest seed, and that link; no variants."""
    for _, seeds in sorted(group.students.items()):
        record = seeds[min(seeds)]
        for one in model_of(record).get("links", []):
            if one.get("type") == link:
                yield record, one


def model_of(record: RunRecord) -> Mapping[str, Any]:
    """The 'model' part of a record's config."""
    return record.config.get("model") or {}


def _teachers(record: RunRecord, weights: Mapping[str, Path], runs: str | Path | None) -> dict[str, Path]:
    """The files of those frozen members that were trained by runs; the engine finds the others by itself."""
    found = {}
    for member in model_of(record)["members"].values():
        scheme, _, identity = (member.get("weights") or "").partition("://")
        if scheme == "run":
            found[identity] = find_weights(identity, member.get("sha256"), weights, runs)
    return found


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
                f"pictures are drawn for {', '.join(map(_words, tasks))}; {group.benchmark} is "
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


def save_drawn(
    kind: type[Described], plan: Drawable, folder: str, site: str | Path, picture: Image, **said: Any
) -> tuple[Path, Described]:
    """Write a planned picture, and beside it what it says, into a site's folder; returns the path and what it says.

    Args:
        folder: of the site.
        said: fields of `kind` beside the plan's and the picture's.
    Raises: OutputError.
    """
    path, beside = picture_files(site, folder, plan.group)
    found = kind(**plan.described(), picture_sha256=save_picture(picture, path), size=picture.size, **said)
    save_description(found, beside)
    return path, found


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


def find_run(
    kind: type[OfRun], folder: str, group: Group, site: str | Path, choose: Callable[[Group], RunRecord]
) -> OfRun | None:
    """What a site's folder has of a group's run; None where nothing was drawn.

    Args:
        folder: of the site, and the command that draws into it.
        choose: gives the run that would be drawn today, or raises ConfigError where there is none.
    Raises: StalePicture when a file is not whole, or another record or other weights would be drawn today.
    """
    picture, beside = picture_files(site, folder, group)
    again = f"draw it again with: limbeck leaderboard {folder} {group.benchmark} --pair {group.pair}"
    found = read_description(kind, picture, beside, again)
    if found is None:
        return None
    try:
        record = choose(group)
        current = (record.id, record.config_hash, record.student_sha256)
    except ConfigError:  # the run has left the records
        current = None
    if (found.record, found.config_hash, found.student_sha256) != current:
        raise StalePicture(
            f"{picture}: drawn for another record or other weights of {found.record}, and not shown; {again}"
        )
    return found


def picture_view(found: Description, folder: str, alt: str, text: str) -> dict[str, Any]:
    """Everything that the page's template shows of a picture: addresses, size, a text in its place, and a caption."""
    address = quote(f"{folder}/{found.benchmark}/{found.pair}.v{found.benchmark_version}")
    width, height = found.size
    return dict(picture=f"{address}.png", json=f"{address}.json", width=width, height=height, alt=alt, text=text)
