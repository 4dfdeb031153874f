"""Publish: a card made from a run's record, and its weights, put into the zoo."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from inspect import Parameter, signature
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from pydantic import ValidationError

from limbeck.engine.record import RunRecord, read_record
from limbeck.engine.weights import atomic_path, check_sha256, load_into, write_json
from limbeck.errors import ConfigError, UnknownName
from limbeck.zoo.card import DETECTION, MAX_BYTES, SEGMENTATION, Card, DatasetCard, Preprocessing, read_card
from limbeck.zoo.index import CARDS, SHIPPED, WEIGHTS, own_zoo
from limbeck.zoo.names import student_name, teacher_name

if TYPE_CHECKING:
    from torch import nn

LICENCE = "Apache-2.0"


@dataclass(frozen=True)
class DataTerms:
    """What a card says of a data set; a student of any other data set is not published."""

    licence: str
    source: str
    pixels: str
    use: str
    limits: str


DATA_TERMS: Mapping[str, DataTerms] = {
    "digits": DataTerms(
        licence="CC-BY-4.0",
        source="scikit-learn's copy of the UCI data set Optical Recognition of Handwritten Digits",
        pixels="white on black",
        use="Recognising one handwritten digit of 8 × 8 grey pixels; teaching, tests, and comparing methods.",
        limits="Knows single centred digits, light strokes on black; any other image gets one of ten labels too.",
    ),
    "fashion-mnist": DataTerms(
        licence="MIT",
        source="Fashion-MNIST (arXiv 1708.07747)",
        pixels="white on black",
        use="Recognising one piece of clothing of 28 × 28 grey pixels; teaching, tests, and comparing methods.",
        limits="Knows single centred product pictures of ten kinds, light on black; any other image gets a label too.",
    ),
    "cifar10-jpeg": DataTerms(
        licence="none stated; published by its authors for research",
        source="a JPEG copy (quality about 75) of CIFAR-10 (Krizhevsky 2009)",
        pixels="RGB",
        use="Recognising one object of ten kinds in 32 × 32 pixels; teaching, tests, and comparing methods.",
        limits="Saw JPEG images only, so figures do not compare with CIFAR-10's; any other image gets a label too.",
    ),
    "cifar10": DataTerms(
        licence="none stated; published by its authors for research",
        source="CIFAR-10 (Krizhevsky 2009)",
        pixels="RGB",
        use="Recognising one object of ten kinds in 32 × 32 pixels; teaching, tests, and comparing methods.",
        limits="Knows ten kinds of animals and vehicles, one an image; any other image gets one of ten labels too.",
    ),
    "cifar100": DataTerms(
        licence="none stated; published by its authors for research",
        source="CIFAR-100 (Krizhevsky 2009), fine labels",
        pixels="RGB",
        use="Recognising one object of a hundred kinds in 32 × 32 pixels; teaching, tests, and comparing methods.",
        limits="Knows a hundred kinds of things, one an image; any other image gets one of these labels too.",
    ),
    "flowers5": DataTerms(
        licence="none stated; photographs from Flickr under Creative Commons licences chosen by each photographer",
        source="five flower classes of the public Flickr flower collections",
        pixels="RGB, squeezed to a square",
        use="Recognising daisy, dandelion, rose, sunflower or tulip in a photograph; teaching, and comparing methods.",
        limits="A few per cent of the training labels are wrong; any other image gets one of five labels too.",
    ),
    "dtd10": DataTerms(
        licence="none stated; DTD's authors release it for research",
        source="ten classes of the Describable Textures Dataset (arXiv 1311.3618)",
        pixels="RGB",
        use="Telling ten kinds of texture apart in a photograph; teaching, and comparing methods.",
        limits="The classes overlap in meaning and the split is not DTD's; any other image gets one of ten labels too.",
    ),
    "tiny-imagenet": DataTerms(
        licence="none stated; ImageNet terms: non-commercial research and education only",
        source="Tiny ImageNet, 200 classes of ImageNet (arXiv 1409.0575) at 64 × 64",
        pixels="RGB",
        use="Recognising one object of 200 kinds in 64 × 64 pixels; comparing methods.",
        limits="Knows 200 kinds of things, one an image; any other image gets one of these labels too.",
    ),
    "imagenet": DataTerms(
        licence="ImageNet terms: non-commercial research and education only",
        source="ImageNet-1k, ILSVRC 2012 (arXiv 1409.0575)",
        pixels="RGB",
        use="Recognising the main object of a photograph among 1,000 kinds; comparing methods.",
        limits="Knows ImageNet's 1,000 kinds, with the biases of its photographs; any other image gets a label too.",
    ),
    "bccd": DataTerms(
        licence="MIT",
        source="BCCD, microscope images of blood cells",
        pixels="RGB; the whole image is resized, and boxes are brought back to the image's size",
        use="Finding red cells, white cells and platelets in a blood smear; teaching, and comparing methods.",
        limits="No medical device; red cells are not all annotated, so it misses some; other images get boxes too.",
    ),
    "digit-scenes-boxes": DataTerms(
        licence="CC-BY-4.0",
        source="scenes made from scikit-learn's copy of the UCI data set Optical Recognition of Handwritten Digits",
        pixels="RGB; the whole image is resized, and boxes are brought back to the image's size",
        use="Finding handwritten digits over textures; teaching, tests, and comparing methods.",
        limits="Knows made-up scenes of 8 × 8 digits; any other image gets boxes too.",
    ),
    "coco2017": DataTerms(
        licence="annotations CC-BY-4.0; photographs from Flickr under terms chosen by each photographer",
        source="COCO 2017 (arXiv 1405.0312)",
        pixels="RGB",
        use="Finding objects of 80 kinds in photographs; comparing methods.",
        limits="Knows 80 kinds of things; whatever else is in an image is passed over or taken for one of them.",
    ),
    "voc0712": DataTerms(
        licence="none stated; photographs from Flickr under terms chosen by each photographer",
        source="PASCAL VOC 2007 and 2012",
        pixels="RGB",
        use="Finding objects of 20 kinds in photographs; comparing methods.",
        limits="Knows 20 kinds of things; whatever else is in an image is passed over or taken for one of them.",
    ),
    "camvid": DataTerms(
        licence="CC BY-NC 4.0, personal and research use only",
        source="CamVid (Brostow et al. 2009), the 11-class 480 × 360 version of SegNet's tutorial",
        pixels="RGB; the whole image is resized, and the class map brought back to the image's size by nearest",
        use="Labelling the pixels of a road scene with one of 11 classes; research, teaching, and comparing methods.",
        limits="Knows scenes of Cambridge by day and at dusk, seen from a car; figures at a smaller size (240 × 180, "
        "192 × 144) do not compare with those at full size; every pixel of any other image gets one of 11 labels too.",
    ),
    "digit-scenes": DataTerms(
        licence="CC-BY-4.0",
        source="digits of scikit-learn's copy of the UCI data set Optical Recognition of Handwritten Digits, "
        "over textures that this package draws",
        pixels="RGB; the whole image is resized, and the class map brought back to the image's size by nearest",
        use="Finding the pixels of handwritten digits in small made-up scenes; teaching, tests, and comparing methods.",
        limits="Knows drawn scenes only; every pixel of any other image gets one of 11 labels too.",
    ),
}


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
        or a detector that was tested on images of several sizes.
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
    with atomic_path(root / WEIGHTS / card.file) as temporary:
        shutil.copyfile(source, temporary)
    write_json(path, card.model_dump(mode="json"))
    if old is not None and old.file != card.file:
        (root / WEIGHTS / old.file).unlink(missing_ok=True)
    return read_card(path)


def _check(record: RunRecord, weights: Path) -> None:
    if record.status != "ok":
        raise ConfigError(f"the record {record.id} is {record.status!r}; only students of 'ok' records are published")
    if record.data.name not in DATA_TERMS:
        known = UnknownName("licence of data set", record.data.name, DATA_TERMS)
        raise ConfigError(f"{known}; add its terms to DATA_TERMS in limbeck/zoo/publish.py")
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
    test = _without_place(record.config["data"]["test"])
    drawn = record.task in (SEGMENTATION, DETECTION)
    pictures = DATASETS.make(test, where=f"in the record {record.id}") if drawn else None
    size = None if pictures is None else _size(record, pictures)
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
            preprocessing=_preprocessing(model, test, terms, size),
            metrics=record.metrics,
            primary_metric=record.primary_metric,
            record=record.id,
            parameters=record.student.parameters,
            flops=record.student.flops,
            file=f"{name}-{record.student_sha256[:8]}.safetensors",
            file_bytes=weights.stat().st_size,
            sha256=record.student_sha256,
            licence=LICENCE,
            intended_use=terms.use,
            limits=terms.limits,
            code_version=f"limbeck {environment.limbeck}{commit}",
        )
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(p) for p in first["loc"]) or "card"
        raise ConfigError(f"the card of {record.id} is not valid: {where}: {first['msg']}") from error


def _built(config: dict[str, Any], weights: Path, record: RunRecord) -> nn.Module:
    from limbeck.engine.registry import MODELS

    model = cast("nn.Module", MODELS.make(config, where=f"in the record {record.id}"))
    load_into(model, weights, sha256=record.student_sha256)
    return model


def _without_place(test: Mapping[str, Any]) -> dict[str, Any]:
    """The test split's config without a folder of the machine that trained."""
    return {k: v for k, v in test.items() if not (isinstance(v, str) and Path(v).is_absolute())}


def _classes(record: RunRecord, test: dict[str, Any], model: nn.Module) -> tuple[str, ...]:
    """Class names in the order of the logits, or of a detector's labels: the record's, else those of the data set."""
    import torch

    from limbeck.engine.registry import DATASETS

    names = record.data.classes or next(iter(record.per_class.values()), None)
    if names is None:
        names = DATASETS.make(test, where=f"in the record {record.id}").classes
    if record.task == DETECTION:
        logits = int(cast(Any, model).num_classes)
    else:
        with torch.inference_mode():
            logits = model.eval()(torch.zeros(1, *cast(Any, model.input_size))).shape[1]
    if len(names) != logits:
        raise ConfigError(f"the record {record.id} names {len(names)} classes, but its student has {logits} logits")
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
        note=terms.pixels,
    )
