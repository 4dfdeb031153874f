"""Zero-shot evaluation: image features of a data set, and how many of its images a teacher names rightly."""

from __future__ import annotations

import json
from ast import literal_eval
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Subset

from limbeck.engine.cost import evaluating
from limbeck.engine.data import check_limit
from limbeck.engine.evaluate import whole_batch
from limbeck.engine.pixels import PixelPreprocessor, input_of
from limbeck.engine.registry import DATASETS, MODELS, accepted_keys
from limbeck.errors import ConfigError, DataMissing
from limbeck.multimodal.vlm._few_shot import Report
from limbeck.multimodal.vlm.classifier import ZeroShotClassifier

JOINED, TINY = "joined", "tiny"  # names of the models that are not open_clip's
CONFIDENCE = 0.95


@dataclass(frozen=True)
class ClassFigure:
    """One class: its images, and how many of them were named rightly."""

    name: str
    images: int
    correct: int

    @property
    def accuracy(self) -> float | None:
        """In percent; None without images."""
        return 100.0 * self.correct / self.images if self.images else None


@dataclass(frozen=True)
class ZeroShotResult:
    """What a teacher makes of a split.

    Attributes:
        model: its config. dataset, split: of the images. images, correct: counts.
        top1: in percent. low, high: its 95 % interval by Wilson, over images; the teacher and its prompts are fixed.
        classes: in the order of labels.
    """

    model: dict[str, Any]
    dataset: str
    split: str
    images: int
    correct: int
    top1: float
    low: float
    high: float
    classes: list[ClassFigure]

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        found = asdict(self)
        found["classes"] = [{**asdict(c), "accuracy": c.accuracy} for c in self.classes]
        return found


def wilson_interval(correct: int, images: int) -> tuple[float, float]:
    """The 95 % interval of an accuracy by Wilson's score method, in percent."""
    from scipy.stats import binomtest

    found = binomtest(correct, images).proportion_ci(CONFIDENCE, method="wilson")
    return 100.0 * float(found.low), 100.0 * float(found.high)


@torch.no_grad()
def image_features(
    model: ZeroShotClassifier,
    dataset: Any,
    *,
    batch_size: int = 64,
    stage: str = "zero-shot",
    report: Report | None = None,
) -> tuple[Tensor, Tensor]:
    """Normalised image embeddings (N, d) and labels (N,) of a data set of images, on the CPU, in its order.

    Args:
        dataset: of the registry: gives batches of uint8 images with labels.
        report: called with the stage, images done and their number.
    """
    device = model.text.device
    preprocess = PixelPreprocessor(*input_of(model)).to(device)
    features, labels = [], []
    done = 0
    with evaluating(model):
        for data in DataLoader(dataset, batch_size=batch_size, collate_fn=whole_batch):
            ready = preprocess(data, False)
            features.append(model.features(ready["inputs"]).float().cpu())
            labels.append(ready["data_samples"]["labels"].cpu())
            done += len(labels[-1])
            if report is not None:
                report(stage, done, len(dataset))
    return torch.cat(features), torch.cat(labels)


def evaluate_zero_shot(
    model: ZeroShotClassifier,
    dataset: Any,
    names: Sequence[str],
    *,
    config: Mapping[str, Any] | None = None,
    batch_size: int = 64,
    report: Report | None = None,
) -> ZeroShotResult:
    """Count the images of a data set whose class has the largest logit.

    Args:
        names: of the teacher's classes, in the order of labels. config: of the teacher, for the result.
    Raises: ConfigError when a label is none of the classes, or the data set is empty.
    """
    if not len(dataset):
        raise ConfigError("the split has no images; choose another")
    features, labels = image_features(model, dataset, batch_size=batch_size, report=report)
    return counted(model, features, labels, dataset, names, config=config)


def counted(
    model: ZeroShotClassifier,
    features: Tensor,
    labels: Tensor,
    dataset: Any,
    names: Sequence[str],
    *,
    config: Mapping[str, Any] | None = None,
) -> ZeroShotResult:
    """The result of features (N, d) and labels (N,) of a data set's images; see `evaluate_zero_shot`."""
    if not 0 <= int(labels.min()) <= int(labels.max()) < len(names):
        raise ConfigError(
            f"labels go from {int(labels.min())} to {int(labels.max())}, and there are {len(names)} names"
        )
    with torch.no_grad():
        right = model.classify(features.to(model.text.device)).argmax(1).cpu() == labels
    images = torch.bincount(labels, minlength=len(names)).tolist()
    correct = torch.bincount(labels[right], minlength=len(names)).tolist()
    low, high = wilson_interval(sum(correct), len(labels))
    source = _whole(dataset)
    return ZeroShotResult(
        model=dict(config or {}),
        dataset=str(source.name),
        split=str(source.split),
        images=len(labels),
        correct=sum(correct),
        top1=100.0 * sum(correct) / len(labels),
        low=low,
        high=high,
        classes=[ClassFigure(*facts) for facts in zip(names, images, correct)],
    )


def _whole(dataset: Any) -> Any:
    return dataset.dataset if isinstance(dataset, Subset) else dataset


class Rows(Subset):
    """Some images of a data set, still in whole batches."""

    def __getitems__(self, indices: list[int]) -> Any:  # type: ignore[override]
        return cast(Any, self.dataset).__getitems__([self.indices[i] for i in indices])


def read_options(options: Sequence[str]) -> dict[str, Any]:
    """'key=value' texts as arguments; values are read as Python literals, else kept as text. Raises: ConfigError."""
    given: dict[str, Any] = {}
    for option in options:
        key, equals, text = option.partition("=")
        if not equals or not key:
            raise ConfigError(f"option {option!r} is not of the form key=value, such as root=photos")
        try:
            given[key] = literal_eval(text)
        except (ValueError, SyntaxError, TypeError):
            given[key] = text
    return given


def open_split(name: str, split: str, options: Sequence[str] = (), limit: int | None = None) -> Any:
    """A data set of the registry.

    Args:
        options: 'key=value' arguments of it, see `read_options`.
        limit: takes the first images only.
    Raises: UnknownName; ConfigError; DataMissing.
    """
    given = read_options(options)
    own = limit is not None and "limit" in (accepted_keys(DATASETS.lookup(name)) or ())
    found = DATASETS.make({"type": name, "split": split, **({"limit": limit} if own else {}), **given})
    if limit is None or own:
        return found
    return Rows(found, range(check_limit(limit, len(found), name)))


def read_names(path: str | Path) -> list[str]:
    """Class names of a file: a JSON list, or one a line.

    Raises: DataMissing when there is no such file; ConfigError when it is no text, or JSON but no list of texts.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise DataMissing(f"{path}: {error.strerror}; name a file of class names") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is no UTF-8 text; give a JSON list of names, or one a line") from error
    if not text.lstrip().startswith(("[", "{")):
        return [line.strip() for line in text.splitlines() if line.strip()]
    try:
        found = json.loads(text)
    except ValueError as error:
        raise ConfigError(f"{path} is not whole JSON ({error}); give a list of names, or one a line") from error
    if not isinstance(found, list) or not all(isinstance(name, str) for name in found):
        raise ConfigError(f"{path} is JSON but no list of texts; give a list of names, or one a line")
    return found


def class_names(dataset: Any, names: str | Path | None = None) -> list[str]:
    """The names to make prompts of: the data set's own, or those of a file.

    Raises: ConfigError when the file has fewer or more names than the data set has classes.
    """
    own = list(_whole(dataset).classes)
    if names is None:
        return own
    found = read_names(names)
    if len(found) != len(own):
        fewer = "fewer" if len(found) < len(own) else "more"
        raise ConfigError(
            f"{names} has {fewer} names than classes: {len(found)} for {len(own)}; give one for each, in the order of "
            f"labels, which begins {', '.join(own[:3])}"
        )
    return found


def teacher_config(
    model: str,
    tag: str | None,
    classes: Sequence[str],
    templates: Sequence[str] = (),
    size: int | None = None,
) -> dict[str, Any]:
    """The config of the teacher that a command names.

    Args:
        model: 'joined', 'tiny', or a model of open_clip. tag: of open_clip's weights, or a file.
        templates: prompts, or the name of a data set's; the model's usual ones where empty.
        size: pixels a side that 'joined' is fed.
    Raises: ConfigError for a tag or size of a model that has none.
    """
    own = model.lower() in (JOINED, TINY)
    if own and tag is not None:
        raise ConfigError(f"model {model!r} has no tag; leave out {tag!r}")
    if size is not None and model.lower() != JOINED:
        raise ConfigError(f"size is of model '{JOINED}' alone; {model!r} has one of its own")
    found: dict[str, Any] = dict(classes=list(classes))
    if templates:
        # a single one may be the name of a data set's templates
        found["templates"] = templates[0] if len(templates) == 1 else list(templates)
    if model.lower() == JOINED:
        return dict(type="ZeroShotJoined", **found, **(dict(input_size=[3, size, size]) if size else {}))
    return dict(type="ZeroShotTiny", **found) if own else dict(type="ZeroShot", model=model, tag=tag, **found)


def build_teacher(config: Mapping[str, Any], device: str = "cpu") -> ZeroShotClassifier:
    """The teacher of a config, with its weights. Raises: what the model of the registry raises."""
    return cast(ZeroShotClassifier, MODELS.make(config, where="as teacher")).to(device).eval()
