"""Publish: a card made from a run's record, and its weights, put into the zoo."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from inspect import Parameter, signature
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from pydantic import ValidationError

from limbeck.engine.record import RunRecord, read_record
from limbeck.engine.weights import check_sha256, copy_file, load_into, write_json
from limbeck.errors import ConfigError, UnknownName, first_problem
from limbeck.zoo.card import (
    DETECTION,
    GENERATION,
    LIDAR,
    MAX_BYTES,
    SEGMENTATION,
    Card,
    CloudPreprocessing,
    DatasetCard,
    Preprocessing,
    SamplerCard,
    read_card,
)
from limbeck.zoo.index import CARDS, SHIPPED, WEIGHTS, own_zoo
from limbeck.zoo.names import student_name, teacher_name
from limbeck.zoo.terms import DATA_TERMS, GENERATION_TERMS, DataTerms

if TYPE_CHECKING:
    from torch import nn

LICENCE = "Apache-2.0"


def add_student(
    record: RunRecord | str | Path, weights: str | Path, name: str | None = None, zoo_dir: str | Path | None = None
) -> Card:
    """Put a run's student into the zoo; the same run again replaces its card and weights.

    Args:
        record: of the run; every figure of the card is copied from it.
        weights: the file that the run saved.
        name: '<architecture>.<tag>'; made from the record where not given.
        zoo_dir: the folder that gets cards/<name>.json and weights/; $LIMBECK_ZOO or the shipped zoo where not given.
    Raises: CorruptFile when the weights are not those of the record, or do not fit its model; ConfigError for a record
        that is not 'ok', a file over 10 MB, a data set whose licence is not known here, a name that another run has,
        a detector that was tested on images of several sizes, or a diffusion model without classes.
    """
    found = record if isinstance(record, RunRecord) else read_record(record)
    source = Path(weights)
    root = Path(zoo_dir) if zoo_dir is not None else (own_zoo() or SHIPPED)
    _check(found, source)
    card = _card(found, source, name or student_name(found))
    path = root / CARDS / f"{card.name}.json"
    old = read_card(path) if path.is_file() else None
    if old is not None and old.record != card.record:
        raise ConfigError(f"the name {card.name!r} is taken by the run {old.record}; give this student another name")
    # The hash in the file's name: a new file never takes the place of the one that the present card names.
    copy_file(source, root / WEIGHTS / card.file)
    write_json(path, card.model_dump(mode="json"))
    if old is not None and old.file != card.file:
        (root / WEIGHTS / old.file).unlink(missing_ok=True)
    return read_card(path)


def _check(record: RunRecord, weights: Path) -> None:
    if record.status != "ok":
        raise ConfigError(f"the record {record.id} is {record.status!r}; only students of 'ok' records are published")
    if record.data.name not in DATA_TERMS:
        known = UnknownName("licence of data set", record.data.name, DATA_TERMS)
        raise ConfigError(f"{known}; add its terms to DATA_TERMS in limbeck/zoo/terms.py")
    if record.task == GENERATION and record.data.name not in GENERATION_TERMS:
        known = UnknownName("use and limits of images made like", record.data.name, GENERATION_TERMS)
        raise ConfigError(f"{known}; add them to GENERATION_TERMS in limbeck/zoo/terms.py")
    if not weights.is_file():
        raise ConfigError(f"{weights}: no such weight file; name the student.safetensors of the run {record.id}")
    size = weights.stat().st_size
    if size > MAX_BYTES:
        raise ConfigError(f"{weights}: {size / 1e6:.1f} MB; the zoo takes weight files up to {MAX_BYTES / 1e6:.0f} MB")
    check_sha256(weights, record.student_sha256)


def _card(record: RunRecord, weights: Path, name: str) -> Card:
    from limbeck.engine.evaluate import without_pretrained
    from limbeck.engine.registry import DATASETS

    members = record.config["model"]["members"]
    config = without_pretrained(members[record.config["model"]["deploy"]]["model"])
    model = _built(config, weights, record)
    terms = DATA_TERMS[record.data.name]
    makes = record.task == GENERATION
    use, limits = GENERATION_TERMS[record.data.name] if makes else (terms.use, terms.limits)
    test = _without_place(record.config["data"]["test"])
    drawn = record.task in (SEGMENTATION, DETECTION, LIDAR)
    pictures = DATASETS.make(test, where=f"in the record {record.id}") if drawn else None
    clouds = record.task == LIDAR
    size = None if pictures is None or clouds else _size(record, pictures)
    environment = record.environment
    commit = (
        f" ({environment.git_commit[:12]}{', changed' if environment.git_dirty else ''})"
        if environment.git_commit
        else ""
    )
    try:
        return Card(
            name=name,
            task=record.task,
            benchmark=record.benchmark,
            benchmark_version=record.benchmark_version,
            pair=record.pair,
            method=record.method,
            seed=record.seed,
            model=config,
            teacher=teacher_name(record),
            dataset=DatasetCard(
                name=record.data.name,
                content_hash=record.data.content_hash,
                licence=terms.licence,
                source=terms.source,
                test=test,
            ),
            classes=_classes(record, test, model),
            palette=None if pictures is None else tuple(tuple(colour) for colour in pictures.palette),
            preprocessing=None if clouds else _preprocessing(model, test, terms, size),
            voxels=_voxels(model, terms) if clouds else None,
            sampler=_sampler(model) if makes else None,
            metrics=record.metrics,
            primary_metric=record.primary_metric,
            record=record.id,
            parameters=record.student.parameters,
            flops=record.student.flops,
            file=f"{name}-{record.student_sha256[:8]}.safetensors",
            file_bytes=weights.stat().st_size,
            sha256=record.student_sha256,
            **latency_of(record),
            licence=LICENCE,
            intended_use=use,
            limits=limits,
            code_version=f"limbeck {environment.limbeck}{commit}",
        )
    except ValidationError as error:
        raise ConfigError(f"the card of {record.id} is not valid: {first_problem(error, 'card')}") from error


def latency_of(record: RunRecord) -> dict[str, Any]:
    """The card's fields of the latency that a record has, with its machine; none where it was not measured."""
    if (taken := record.cost.student_latency_ms) is None or taken <= 0:
        return {}
    where = record.environment
    return dict(latency_ms=taken, latency_device=where.machine, latency_threads=where.threads)


def _built(config: dict[str, Any], weights: Path, record: RunRecord) -> nn.Module:
    from limbeck.engine.registry import MODELS

    model = cast("nn.Module", MODELS.make(config, where=f"in the record {record.id}"))
    load_into(model, weights, sha256=record.student_sha256)
    return model


def _without_place(test: Mapping[str, Any]) -> dict[str, Any]:
    """The test split's config without a folder of the machine that trained."""
    return {k: v for k, v in test.items() if not (isinstance(v, str) and Path(v).is_absolute())}


def _classes(record: RunRecord, test: dict[str, Any], model: nn.Module) -> tuple[str, ...]:
    """Class names in the order of the logits, or of a detector's labels: the record's, else those of the data set.

    A generator's are those that it can be asked for.
    """
    import torch

    from limbeck.engine.registry import DATASETS

    names = record.data.classes or next(iter(record.per_class.values()), None)
    if names is None:
        names = DATASETS.make(test, where=f"in the record {record.id}").classes
    if record.task == GENERATION and cast(Any, model).num_classes is None:
        raise ConfigError(f"the student of {record.id} cannot be asked for a class; publish a class-conditional one")
    if record.task in (DETECTION, LIDAR, GENERATION):
        logits = int(cast(Any, model).num_classes)
    else:
        with torch.inference_mode():
            logits = model.eval()(torch.zeros(1, *cast(Any, model.input_size))).shape[1]
    if len(names) != logits:
        word = "classes" if record.task == GENERATION else "logits"
        raise ConfigError(f"the record {record.id} names {len(names)} classes, but its student has {logits} {word}")
    return tuple(names)


def _size(record: RunRecord, pictures: Any) -> tuple[int, int]:
    """Height and width of all test images."""
    size = getattr(pictures, "size", None)
    if size is None:
        raise ConfigError(
            f"the record {record.id} is of images of several sizes, and the zoo resizes each image to one; "
            f"publish a student that was tested at one size, which {record.data.name} does not have"
        )
    return size


def _preprocessing(
    model: nn.Module, test: Mapping[str, Any], terms: DataTerms, size: tuple[int, int] | None
) -> Preprocessing:
    """`size` is that of the test images where they were evaluated as they are; else the model's input size counts."""
    from limbeck.engine.registry import DATASETS

    normalization: Any = model.normalization
    channels, *own = cast(Any, model.input_size)
    crop = signature(DATASETS.lookup(test["type"])).parameters.get("crop_pct")
    default = None if crop is None or crop.default is Parameter.empty else crop.default
    return Preprocessing(
        input_size=cast(tuple[int, int, int], (channels, *(own if size is None else size))),
        mean=tuple(normalization.mean),
        std=tuple(normalization.std),
        crop_pct=test.get("crop_pct", default),
        interpolation="bilinear" if crop is None else "bicubic",  # as data sets of photographs resize
        note=terms.note,
    )


def _sampler(model: nn.Module) -> SamplerCard:
    """How it makes images, with the calls that one takes."""
    net: Any = model
    kind = "boot" if hasattr(net, "t_min") else net.sampler.kind
    calls = net.generate([0]).calls
    return SamplerCard(kind=kind, steps=net.sampler.steps, guidance=net.sampler.guidance, calls=calls)


def _voxels(model: nn.Module, terms: DataTerms) -> CloudPreprocessing:
    from limbeck.pointcloud.adapter import grid_of

    return CloudPreprocessing(**asdict(grid_of(model)), note=terms.note)
