"""Cards: one validated JSON file per student, saying what it is, how to feed it, whose record it quotes."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from limbeck.engine.record import Finite, Sha256, Task
from limbeck.errors import CorruptFile, first_problem

CARD_VERSION = 1
MAX_BYTES = 10_000_000  # of one weight file that `add` takes: the small students travel inside the package
MAX_DOWNLOAD = 4_000_000_000  # of one weight file from elsewhere
SEGMENTATION = "semantic-segmentation"
DETECTION = "object-detection"
LIDAR = "3d-object-detection"
GENERATION = "image-generation"
Byte = Annotated[int, Field(ge=0, le=255)]
NAME = r"^[A-Za-z0-9][A-Za-z0-9_-]*(\.[A-Za-z0-9_-]+)+$"
Name = Annotated[str, Field(pattern=NAME)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class DatasetCard(_Strict):
    """What the student was trained on, and under which terms that data comes."""

    name: str
    content_hash: str = Field(min_length=8, description="of the test split, as the record has it")
    licence: str
    source: str
    test: dict[str, Any] = Field(description="config of the test split, for the registry of data sets")


class Preprocessing(_Strict):
    """How an image becomes the network's input."""

    input_size: tuple[int, int, int] = Field(description="(channels, height, width)")
    mean: tuple[Finite, ...] = Field(description="of each channel, on a [0, 1] pixel scale")
    std: tuple[Finite, ...]
    crop_pct: Finite | None = Field(
        None,
        description="None: the whole image is brought to height × width; else the shorter side is brought to "
        "side / crop_pct and the centre is cut out",
    )
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    note: str = Field("", description="what the pixels mean: 'white on black'")

    @model_validator(mode="after")
    def _fits(self) -> Self:
        channels = self.input_size[0]
        if min(self.input_size) < 1 or len(self.mean) != channels or len(self.std) != channels:
            raise ValueError(f"mean and std need one value for each of the channels of input_size {self.input_size}")
        if min(self.std) <= 0 or not 0 < (1.0 if self.crop_pct is None else self.crop_pct) <= 1:
            raise ValueError("std must be positive, and crop_pct in (0, 1]")
        return self


class CloudPreprocessing(_Strict):
    """How a LiDAR cloud, points of x, y, z and reflectance, becomes the network's input: the grid of its voxels."""

    point_cloud_range: tuple[Finite, Finite, Finite, Finite, Finite, Finite] = Field(
        description="x, y, z of the lowest corner, then of the highest one, in metres; points beyond are not seen"
    )
    voxel_size: tuple[Finite, Finite, Finite] = Field(description="along x, y, z, in metres")
    max_points: int = Field(gt=0, description="that a voxel keeps, the first ones of the cloud")
    max_voxels: tuple[int, int] = Field(description="that a cloud keeps in training and in evaluation")
    note: str = Field("", description="what the points are")


class SamplerCard(_Strict):
    """How a diffusion model makes an image of noise."""

    kind: Literal["ddim", "dpm-solver", "euler", "consistency", "boot"]
    steps: int = Field(gt=0)
    guidance: Finite = Field(description="of classifier-free guidance; 1 is none")
    calls: int = Field(gt=0, description="of the network, for one image; a guided step is two")


class Card(_Strict):
    """A student (or a teacher) of the zoo; every figure is copied from the record `record`."""

    card_version: Literal[1] = CARD_VERSION
    name: Name = Field(description="'<architecture>.<benchmark>_<method>', with '_s<seed>' for seeds other than 0")
    task: Task
    benchmark: str
    benchmark_version: int = 1
    pair: str
    method: str = Field(description="'teacher', 'plain', or the registered method's name")
    seed: int
    model: dict[str, Any] = Field(description="config of the architecture, for the registry of models")
    teacher: str | None = Field(None, description="name of the teacher, with its tag where its record is known")
    dataset: DatasetCard
    classes: tuple[str, ...] = Field(
        min_length=1, description="in the order of the logits, of a detector's labels, or of a generator's classes"
    )
    palette: tuple[tuple[Byte, Byte, Byte], ...] | None = Field(
        None,
        description="RGB of each class in pictures of class maps and boxes; None, and not in the file, for other tasks",
        exclude_if=lambda value: value is None,
    )
    preprocessing: Preprocessing | None = Field(
        None,
        description="None, and not in the file, for students that read LiDAR clouds",
        exclude_if=lambda value: value is None,
    )
    voxels: CloudPreprocessing | None = Field(
        None, description="of those students alone", exclude_if=lambda value: value is None
    )
    sampler: SamplerCard | None = Field(
        None, description="of those students alone that make images", exclude_if=lambda value: value is None
    )
    metrics: dict[str, Finite] = Field(description="on the test split, in the record's terms")
    primary_metric: str
    record: str = Field(description="id of the record, its path below results/ without '.json'")
    parameters: int
    flops: int | None = Field(None, description="2 per multiply-add, one sample; None where it cannot be counted")
    file: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*\.safetensors$", description="name below weights/")
    file_bytes: int = Field(gt=0, le=MAX_DOWNLOAD)
    sha256: Sha256
    latency_ms: Finite | None = Field(
        None,
        gt=0,
        description="median of one sample's forward, from the record; None, and not in the file, where not measured",
        exclude_if=lambda value: value is None,
    )
    latency_device: str | None = Field(
        None, description="the processor or GPU that took that time", exclude_if=lambda value: value is None
    )
    latency_threads: int | None = Field(
        None, gt=0, description="that torch had", exclude_if=lambda value: value is None
    )
    licence: str = Field(description="of the weights; that of the data stands in `dataset`")
    intended_use: str
    limits: str
    code_version: str = Field(description="limbeck's version and commit that trained it")

    @model_validator(mode="after")
    def _has_primary(self) -> Self:
        if self.primary_metric not in self.metrics:
            raise ValueError(f"metrics lack the primary one, {self.primary_metric!r}")
        return self

    @model_validator(mode="after")
    def _latency_has_a_machine(self) -> Self:
        if len({self.latency_ms is None, self.latency_device is None, self.latency_threads is None}) > 1:
            raise ValueError("latency_ms, latency_device and latency_threads go together")
        return self

    @model_validator(mode="after")
    def _draws(self) -> Self:
        if self.palette is not None and len(self.palette) != len(self.classes):
            raise ValueError(f"palette has {len(self.palette)} colours for {len(self.classes)} classes")
        if not (self.segments or self.detects or self.detects_3d):
            return self
        kind = "a segmentation student" if self.segments else "a detector"
        if self.palette is None:
            raise ValueError(f"{kind} needs a palette, one RGB colour a class")
        if len(set(self.classes)) != len(self.classes):
            raise ValueError(f"{kind} needs a name of its own for each class")
        if self.preprocessing is not None and self.preprocessing.crop_pct is not None:
            raise ValueError(f"{kind} takes the whole image; crop_pct must be null")
        return self

    @model_validator(mode="after")
    def _reads(self) -> Self:
        if (self.preprocessing is None, self.voxels is not None) != (self.detects_3d, self.detects_3d):
            wanted, other = ("voxels", "preprocessing") if self.detects_3d else ("preprocessing", "voxels")
            raise ValueError(f"a card of {self.task} has {wanted} and no {other}")
        return self

    @model_validator(mode="after")
    def _makes(self) -> Self:
        if (self.sampler is not None) != self.generates:
            raise ValueError(f"a card of {self.task} has {'a' if self.generates else 'no'} sampler")
        return self

    @property
    def generates(self) -> bool:
        """Whether the student makes images of noise, and reads none."""
        return self.task == GENERATION

    @property
    def segments(self) -> bool:
        """Whether the student labels pixels: logits (B, K, H, W) instead of (B, K)."""
        return self.task == SEGMENTATION

    @property
    def detects(self) -> bool:
        """Whether the student finds boxes: the raw outputs of its head's levels instead of logits (B, K)."""
        return self.task == DETECTION

    @property
    def detects_3d(self) -> bool:
        """Whether the student finds boxes in LiDAR clouds, which it reads as voxels."""
        return self.task == LIDAR

    @property
    def value(self) -> float:
        """The primary metric."""
        return self.metrics[self.primary_metric]


def is_name(text: str) -> bool:
    """Whether this may be a student's name."""
    return re.match(NAME, text) is not None and not text.endswith("\n")


def read_card(path: str | Path) -> Card:
    """Read and validate one card.

    Raises: CorruptFile naming the file and what is wrong with it.
    """
    file = Path(path)
    try:
        card = Card.model_validate(json.loads(file.read_text(encoding="utf-8")))
    except OSError as error:
        raise CorruptFile(f"{file}: the card cannot be read ({error.strerror}); install limbeck again") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CorruptFile(f"{file}: not a whole JSON card ({error}); get the file again") from error
    except ValidationError as error:
        raise CorruptFile(f"{file}: {first_problem(error, 'card')}; get the file again") from error
    if card.name != file.stem:
        raise CorruptFile(f"{file}: the card is of {card.name!r}; its file must be called {card.name}.json")
    return card
