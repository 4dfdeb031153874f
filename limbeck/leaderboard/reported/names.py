"""Names: joins the methods, models and data sets of the reported tables with ours, and gives every source an id."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from limbeck.errors import CorruptFile, UnknownName, first_problem
from limbeck.leaderboard.reported.rows import FOLDER, ReportedGain, ReportedRerun, ReportedRow, reported_rows

ALIASES, NO_COUNTERPART = FOLDER / "aliases.toml", FOLDER / "no_counterpart.toml"
AnyRow = ReportedRow | ReportedGain | ReportedRerun
# Tasks of the reported tables that are one of ours under another name.
OUR_TASK = {
    "zero-shot-classification": "vlm-classification",
    "semi-supervised-classification": "vlm-classification",
    "instance-segmentation": "object-detection",
}


class Aliases(BaseModel):
    """The alias map; names of methods, models and data sets are by task of the reported tables."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    sources: dict[str, str] = Field(description="id → 'owner/name@commit:path'")
    metrics: dict[str, str] = Field(description="printed metric → the primary metric of our records that is the same")
    methods: dict[str, dict[str, str]]
    models: dict[str, dict[str, str]]
    datasets: dict[str, dict[str, list[str]]] = Field(description="→ benchmarks of our configs")

    @model_validator(mode="after")
    def _one_id_a_source(self) -> Aliases:
        if len(set(self.sources.values())) != len(self.sources):
            raise ValueError("two ids name one source")
        return self

    def method(self, row: AnyRow) -> str | None:
        """Our name of a row's method."""
        return self.methods.get(row.task, {}).get(row.method)

    def model(self, row: AnyRow, printed: str) -> str | None:
        """Our name of a model of a row."""
        return self.models.get(row.task, {}).get(printed)

    def benchmarks(self, row: AnyRow) -> list[str]:
        """The benchmarks of ours that are on a row's data."""
        known = self.datasets.get(row.task, {})
        return known.get(f"{row.dataset}; {getattr(row, 'schedule', '')}") or known.get(row.dataset) or []

    def source(self, row: ReportedRow) -> str:
        """The id of the document that a row was read from. Raises: CorruptFile for a source without an id."""
        return _ids(self)[row.source_repo] if row.source_repo in _ids(self) else _no_id(row)


class NoCounterpart(BaseModel):
    """Printed names, by task, that have no counterpart here."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    methods: dict[str, list[str]]
    models: dict[str, list[str]]
    datasets: dict[str, list[str]]


@dataclass(frozen=True)
class Counterpart:
    """What a row is called here; None for what has no counterpart."""

    method: str | None
    teacher: str | None
    student: str | None
    benchmarks: tuple[str, ...]

    @property
    def pair(self) -> str | None:
        """'resnet56-resnet20'."""
        return f"{self.teacher}-{self.student}" if self.teacher and self.student else None


@cache
def aliases() -> Aliases:
    """The alias map that Limbeck ships. Raises: CorruptFile."""
    return _read(ALIASES, Aliases)


@cache
def no_counterpart() -> NoCounterpart:
    """The printed names that have no counterpart here. Raises: CorruptFile."""
    return _read(NO_COUNTERPART, NoCounterpart)


def counterpart(row: AnyRow) -> Counterpart:
    """Our names of a row's method, models and data."""
    known = aliases()
    models = (known.model(row, row.teacher), known.model(row, row.student))
    return Counterpart(known.method(row), *models, tuple(known.benchmarks(row)))


def source_rows(identity: str) -> list[ReportedRow]:
    """The rows of one source.

    Raises: UnknownName with near ids.
    """
    known = aliases().sources
    if identity not in known:
        raise UnknownName("published table", identity, known, "among those of limbeck bench reproduce --list")
    return [row for row in reported_rows() if row.source_repo == known[identity]]


def _ids(known: Aliases) -> dict[str, str]:
    return {place: identity for identity, place in known.sources.items()}


def _no_id(row: ReportedRow) -> str:
    raise CorruptFile(f"{row.place}: its source {row.source_repo} has no id; add one to {ALIASES}")


def _read(path: Path, kind: type[Any]) -> Any:
    try:
        return kind.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise CorruptFile(f"{path}: cannot be read ({error.strerror}); install limbeck again") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise CorruptFile(f"{path}: not valid TOML: {error}") from error
    except ValidationError as error:
        raise CorruptFile(f"{path}: {first_problem(error, '')}") from error
