"""Rows of the reported tables: figures that others published, each with the document that it was read from."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from decimal import Decimal
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from limbeck.errors import CorruptFile

FOLDER = Path(__file__).parent
TABLES = FOLDER / "tables"
GAINS, RERUNS = "gains.csv", "reproductions.csv"  # have columns of their own
ReportedTask = Literal[
    "image-classification",
    "object-detection",
    "instance-segmentation",
    "semantic-segmentation",
    "3d-object-detection",
    "3d-semantic-segmentation",
    "zero-shot-classification",
    "semi-supervised-classification",
    "image-generation",
    "multimodal-llm",
]


def _blank(value: Any) -> Any:
    return None if value == "" else value


def _flag(value: Any) -> Any:
    if value not in ("true", "false"):
        raise ValueError("must be 'true' or 'false'")
    return value == "true"


def _plain(value: Any) -> Any:
    if isinstance(value, str) and not value.isprintable():
        raise ValueError("holds a control character")
    return value


Words = Annotated[str, BeforeValidator(_plain)]
Named = Annotated[str, Field(min_length=1), BeforeValidator(_plain)]
Figure = Annotated[Decimal, Field(allow_inf_nan=False)]
Printed = Annotated[Figure | None, BeforeValidator(_blank)]
Year = Annotated[int | None, Field(ge=1990, le=2100), BeforeValidator(_blank)]


class _Row(BaseModel):
    """What every row has; file and line say where it stands."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    task: ReportedTask
    dataset: Words
    metric: Named
    method: Named
    teacher: Words
    student: Words
    note: Words = ""
    file: str = Field(exclude=True)
    line: int = Field(exclude=True)

    @property
    def place(self) -> str:
        """'vision.csv, line 12'."""
        return f"{self.file}, line {self.line}"


class ReportedRow(_Row):
    """One figure of a distilled student as printed, with its teacher's and the undistilled student's beside it."""

    dataset: Named
    split: Words
    higher_is_better: Annotated[bool, BeforeValidator(_flag)]
    method_year: Year = None
    teacher_value: Printed = None
    student: Named
    baseline_value: Printed = None
    distilled_value: Figure
    schedule: Words
    source_title: Named
    source_arxiv: Words
    source_table: Named
    source_repo: Annotated[str, Field(pattern=r"^[^/\s]+/[^/\s@]+@[0-9a-f]{7,40}:\S+$")]

    @property
    def gain(self) -> Decimal | None:
        """Over the row's own baseline; positive is better. None where no baseline is printed."""
        if self.baseline_value is None:
            return None
        change = self.distilled_value - self.baseline_value
        return change if self.higher_is_better else -change


class ReportedGain(_Row):
    """A headline difference that gives no absolute value."""

    method_year: Year = None
    gain: Figure
    gain_over: Named
    source_title: Named
    source_table: Named


class ReportedRerun(_Row):
    """A claimed value beside somebody's re-run of it; user reports are weaker evidence."""

    claimed_value: Printed = None
    claimed_by: Words
    rerun_value: Printed = None
    rerun_by: Words
    cause_if_known: Words
    source: Named

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        if self.claimed_value is None and self.rerun_value is None:
            raise ValueError("has neither a claimed nor a re-run value")
        return self


Row = TypeVar("Row", bound=_Row)


def read_table(path: str | Path, kind: type[Row] = ReportedRow) -> list[Row]:
    """Read one CSV of rows.

    Raises: CorruptFile naming file, line, column and what is wrong.
    """
    file = Path(path)
    columns = [name for name in kind.model_fields if name not in ("file", "line")]
    try:
        with file.open(encoding="utf-8", newline="") as opened:
            reader = csv.DictReader(opened, strict=True)
            if set(reader.fieldnames or ()) - set(columns) or set(columns) - {*(reader.fieldnames or ()), "note"}:
                raise CorruptFile(f"{file}, line 1: the columns are {reader.fieldnames}; expected {columns}")
            return [_row(raw, kind, file, reader.line_num) for raw in reader]
    except OSError as error:
        raise CorruptFile(f"{file}: cannot be read ({error.strerror}); install limbeck again") from error
    except (csv.Error, UnicodeDecodeError) as error:
        raise CorruptFile(f"{file}: not a whole CSV file ({error}); correct it") from error


def _row(raw: dict[Any, Any], kind: type[Row], file: Path, line: int) -> Row:
    if None in raw or None in raw.values():
        raise CorruptFile(f"{file}, line {line}: has more or fewer fields than the header; quote those with commas")
    try:
        return kind.model_validate({**raw, "file": file.name, "line": line})
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(p) for p in first["loc"] if isinstance(p, str)) or "row"
        raise CorruptFile(f"{file}, line {line}: {where}: {first['msg']}; correct it from its source") from error


def table_files(folder: Path = TABLES) -> Iterator[Path]:
    """The CSV files with columns of `ReportedRow`."""
    yield from (p for p in sorted(folder.glob("*.csv")) if p.name not in (GAINS, RERUNS))


@cache
def reported_rows() -> tuple[ReportedRow, ...]:
    """Every row of the tables that Limbeck ships, file by file. Raises: CorruptFile."""
    return tuple(row for path in table_files() for row in read_table(path))


@cache
def reported_gains() -> tuple[ReportedGain, ...]:
    """Headline gains without absolute values. Raises: CorruptFile."""
    return tuple(read_table(TABLES / GAINS, ReportedGain))


@cache
def reported_reruns() -> tuple[ReportedRerun, ...]:
    """Claimed values beside others' re-runs. Raises: CorruptFile."""
    return tuple(read_table(TABLES / RERUNS, ReportedRerun))
