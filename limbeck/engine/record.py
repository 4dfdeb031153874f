"""Result records: one validated JSON file per finished run, the only source of every published figure."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from operator import not_
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from limbeck.engine.weights import sha256_json, write_json
from limbeck.errors import CorruptFile, first_problem

RECORD_VERSION = 1
Task = Literal[
    "image-classification",
    "object-detection",
    "semantic-segmentation",
    "3d-object-detection",
    "vlm-classification",
    "image-generation",
]
Status = Literal["ok", "partial", "failed", "unreliable", "superseded"]
Selection = Literal["last", "best_val", "best_test"]


def _finite(value: float) -> float:
    if not math.isfinite(value):
        raise ValueError("must be finite")
    return value


# What would move a terminal's cursor or turn the direction of text, as JSON has it: escaped, or as it is.
_CONTROL = re.compile(
    r"(?<!\\)(?:\\\\)*\\u(?:00(?:[01][0-9a-f]|7f|[89][0-9a-f])|20(?:0[ef]|2[a-e]|6[6-9]))"
    "|[\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]",
    re.IGNORECASE,
)
Finite = Annotated[float, AfterValidator(_finite)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class _Strict(BaseModel):
    # built at first use: cards share some types, and listing them reads no record
    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)


class FurtherData(_Strict):
    """A further test set: its figures are named '<its name>.<metric>'."""

    content_hash: str = Field(min_length=8)
    samples: int


class DataInfo(_Strict):
    """The data set as it was: name, classes, content hashes and split sizes."""

    name: str
    content_hash: str = Field(min_length=8, description="of the split that gave the metrics")
    split: str = "test"
    train_hash: str | None = Field(None, description="of the training split, with its limit if it has one")
    val_hash: str | None = None
    classes: list[str] = Field(default_factory=list)
    train_samples: int
    val_samples: int
    test_samples: int
    also: dict[str, FurtherData] = Field(
        default_factory=dict, description="further test sets that were there, by name", exclude_if=not_
    )


class ModelInfo(_Strict):
    """One architecture: its name as in configs, parameters and floating-point operations of one sample's forward."""

    name: str
    parameters: int
    flops: int | None = Field(None, description="2 per multiply-add, one sample; None where it cannot be counted")


class Recipe(_Strict):
    """What the optimiser really did."""

    batch_size: int = Field(description="samples per optimiser step over all processes")
    learning_rate_first: Finite
    learning_rate_max: Finite
    learning_rate_last: Finite
    epochs: int
    steps: int
    optimizer: str
    selection: Selection


class Cost(_Strict):
    """What the run used."""

    train_seconds: Finite = Field(description="wall time of the training loop, validation left out")
    samples_seen: int
    teacher_forwards: int = Field(description="samples that frozen members computed; cached ones are not counted")
    peak_memory_mb: Finite = Field(description="peak resident memory of the process, or of the GPU where one is used")
    student_latency_ms: Finite | None = Field(None, description="median of one sample's forward; None if not measured")


class Environment(_Strict):
    """Where the run happened."""

    device: str
    cpu: str
    threads: int
    concurrent_jobs: int = 1
    world_size: int = 1
    platform: str
    python: str
    torch: str
    limbeck: str
    git_commit: str | None = None
    git_dirty: bool | None = None

    @property
    def machine(self) -> str:
        """What computed: the processor, or the GPU where one did."""
        return self.cpu if self.device == "cpu" else self.device


class RunRecord(_Strict):
    """A finished run: what ran, what came out, what it cost, and where."""

    record_version: Literal[1] = RECORD_VERSION
    status: Status = "ok"
    task: Task
    benchmark: str
    benchmark_version: int = 1
    pair: str = Field(description="teacher and student: 'resnet20-resnet8'")
    method: str = Field(description="'teacher', 'plain', or the registered method's name")
    seed: int
    data: DataInfo
    teacher: ModelInfo | None = None
    student: ModelInfo
    config: dict[str, Any]
    config_hash: Sha256
    metrics: dict[str, Finite] = Field(description="on the test split, standard names: top1 in percent, nll, ece, …")
    val_metrics: dict[str, Finite] = Field(default_factory=dict)
    per_class: dict[str, dict[str, Finite]] = Field(default_factory=dict)
    primary_metric: str = "top1"
    higher_is_better: bool = True
    recipe: Recipe
    cost: Cost
    environment: Environment
    student_sha256: Sha256 = Field(description="of the saved student file, whose weights gave the metrics")
    initial_hash: Sha256 = Field(description="of the student's weights before its first step")
    predictions_sha256: Sha256 | None = Field(
        None, description="of the saved predictions on the test split, where they were saved", exclude_if=not_
    )
    teacher_record: str | None = Field(None, description="id of the teacher's record")
    plain_record: str | None = Field(None, description="id of the plain student's record with this seed")
    assumption: str | None = Field(None, description="what of the method is ours, not the paper's")
    finished: str = Field(description="UTC, ISO 8601")

    @model_validator(mode="after")
    def _has_primary(self) -> Self:
        if self.primary_metric not in self.metrics:
            raise ValueError(f"no primary metric {self.primary_metric!r} among {sorted(self.metrics)}")
        return self

    @property
    def id(self) -> str:
        """The record's name: benchmark, pair, method, seed."""
        return record_id(self.benchmark, self.pair, self.method, self.seed)

    @property
    def value(self) -> float:
        """The primary metric."""
        return self.metrics[self.primary_metric]


class FailureRecord(_Strict):
    """A run that a guard stopped: no figures, only what went wrong."""

    record_version: Literal[1] = RECORD_VERSION
    status: Literal["failed"] = "failed"
    benchmark: str
    pair: str
    method: str
    seed: int
    error: str
    message: str
    config_hash: Sha256
    finished: str


def record_id(benchmark: str, pair: str, method: str, seed: int) -> str:
    """'demo/resnet20-resnet8/kd/seed0'; also the record's path below the results folder, without '.json'.

    What a variant's name has beyond letters, digits and '.@=+_-' becomes one '-': 'kd@student.depths=-1-3-5'.
    """
    folder = re.sub(r"[^a-z0-9.@=+_-]+", "-", method.lower()).strip("-")
    return f"{benchmark}/{pair}/{folder}/seed{seed}"


def config_hash(config: dict[str, Any]) -> str:
    """The sha256 of a resolved config."""
    return sha256_json(config)


def record_path(folder: str | Path, identity: str) -> Path:
    """Where a record lies below a results folder."""
    return Path(folder) / f"{identity}.json"


def failure_path(folder: str | Path, identity: str) -> Path:
    """Where a failure record lies: beside where the record would be."""
    return Path(folder) / f"{identity}.failed.json"


def write_record(folder: str | Path, record: RunRecord) -> Path:
    """Write a record, whole or not at all, and drop a failure record of the same run."""
    path = record_path(folder, record.id)
    write_json(path, record.model_dump(mode="json"))
    failure_path(folder, record.id).unlink(missing_ok=True)
    return path


def write_failure(folder: str | Path, failure: FailureRecord) -> Path:
    """Write a failure record, whole or not at all."""
    path = failure_path(folder, record_id(failure.benchmark, failure.pair, failure.method, failure.seed))
    write_json(path, failure.model_dump(mode="json"))
    return path


def read_record(path: str | Path) -> RunRecord:
    """Read and validate one record.

    Raises: CorruptFile naming the file and what is wrong with it.
    """
    file = Path(path)
    try:
        text = file.read_text(encoding="utf-8")
        record = RunRecord.model_validate(json.loads(text))
    except OSError as error:
        raise CorruptFile(f"{file}: cannot be read ({error.strerror}); name a record, or run it again") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CorruptFile(f"{file}: not a whole JSON record ({error}); run it again") from error
    except ValidationError as error:
        raise CorruptFile(f"{file}: {first_problem(error, 'record')}; run it again") from error
    if found := _CONTROL.search(text):
        raise CorruptFile(f"{file}: holds the control character {found[0]!a}, which no record needs; take it out")
    found = config_hash(record.config)
    if found != record.config_hash:
        raise CorruptFile(
            f"{file}: the config's sha256 is {found[:12]}…, expected {record.config_hash[:12]}…; run it again"
        )
    return record


def iter_records(folder: str | Path) -> Iterator[tuple[Path, RunRecord]]:
    """Every record below a results folder, by path; failure records are left out.

    Raises: CorruptFile at the first damaged one.
    """
    for path in sorted(Path(folder).rglob("*.json")):
        if not path.name.endswith(".failed.json") and not path.name.startswith("."):
            yield path, read_record(path)
