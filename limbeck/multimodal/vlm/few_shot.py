"""Few-shot teachers: a zero-shot teacher fitted to few labelled images of a data set, as Tip-Adapter-F or CLAP."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from limbeck.engine.adapter import FitData
from limbeck.engine.data import UNLABELLED
from limbeck.engine.registry import DATASETS
from limbeck.errors import ConfigError, DataMissing, UnknownName
from limbeck.multimodal.vlm._few_shot import Report
from limbeck.multimodal.vlm.clap import CLAP
from limbeck.multimodal.vlm.classifier import AdaptedClassifier, Support, ZeroShotClassifier
from limbeck.multimodal.vlm.tip_adapter import TipAdapterF
from limbeck.multimodal.vlm.zero_shot import Rows, image_features, open_split, read_options

_KINDS: dict[str, type[TipAdapterF] | type[CLAP]] = {"tip-adapter-f": TipAdapterF, "clap": CLAP}
_OF_TRAINING = ("augment", "views", "seed")  # arguments of a data set that evaluation does not share


def fit_few_shot(model: AdaptedClassifier, data: FitData) -> None:
    """Fit a teacher, in place, to the images of a training set that have a label.

    It sees up to `settings.views` augmented views of them, and each once without augmentation. Labels of the others are
    not there to be read.

    Raises: ConfigError for a training set without labels, or another number of them than the model is made for.
    """
    ids = np.flatnonzero(np.asarray(data.train.labels) != UNLABELLED)
    if not len(ids):
        raise ConfigError(f"{type(model).__name__} is fitted to labelled images, and {data.train.name} has none")
    most = max(int(model.settings.views), 1)
    views = []
    for view in range(min(most, data.train.views or most)):
        data.train.set_epoch(view)
        rows = Rows(data.train, ids.tolist())
        views.append(image_features(model, rows, stage=f"view {view + 1}", report=data.report)[0])
    data.train.set_epoch(0)
    plain, labels = image_features(model, Rows(data.plain, ids.tolist()), stage="support", report=data.report)
    val = val_labels = None
    if model.needs_val:
        val, val_labels = image_features(model, data.val, stage="validation", report=data.report)
        val, val_labels = val[val_labels != UNLABELLED], val_labels[val_labels != UNLABELLED]
    support = Support(
        ids=torch.from_numpy(ids),
        labels=labels,
        views=torch.stack(views),
        plain=plain,
        val_features=val,
        val_labels=val_labels,
        seed=data.seed,
        report=data.report,
    )
    model.fit(support)


def check_few_shot(model: AdaptedClassifier, train: Any) -> None:
    """Whether a fitted teacher may teach on a training set: it knows no label that the set hides.

    Raises: ConfigError for a teacher that is not fitted, or fitted to other labelled images.
    """
    name = type(model).__name__
    ids, labels = model.support_ids.cpu().numpy(), model.support_labels.cpu().numpy()
    if (ids < 0).any():
        raise ConfigError(f"teacher {name} is not fitted; make it first, with this seed: --method teacher")
    own = np.asarray(train.labels)
    known = ids < len(own)
    known[known] = own[ids[known]] == labels[known]
    if not known.all():
        raise ConfigError(
            f"teacher {name} was fitted on image {ids[~known][0]}, whose label is not among this run's; make one with "
            "this run's seed and data (--method teacher), and let the pair say teacher_seeds='run'"
        )


def adapted_teacher(
    zero_shot: ZeroShotClassifier,
    config: Mapping[str, Any],
    adapt: str,
    dataset: str,
    options: Sequence[str] = (),
    *,
    shots: int = 16,
    seed: int = 0,
    report: Report | None = None,
) -> tuple[AdaptedClassifier, dict[str, Any]]:
    """A teacher fitted to `shots` images a class of a data set's train split, and its config.

    Args:
        config: of `zero_shot`. adapt: 'tip-adapter-f' or 'clap'.
        dataset, options: see `open_split`; `augment` and `views` are of the labelled images alone.
        seed: of the draw of images, their augmentation and the batches.
    Raises: UnknownName, ConfigError; DataMissing where a split is missing.
    """
    check_adaptation(adapt)
    kind = _KINDS[adapt]
    given = read_options(options)
    of = dict(type=dataset, **given)
    train = _labelled(of, shots, seed)
    plain = _labelled({key: value for key, value in of.items() if key != "augment"}, shots, seed)
    val = _validation(dataset, evaluation_options(options), adapt) if kind.needs_val else None
    support = len(train.labelled)
    model = kind(zero_shot, support).eval().to(zero_shot.text.device)
    fit_few_shot(model, FitData(train=train, plain=plain, val=val, seed=seed, report=report))
    return model, dict(type=kind.__name__, zero_shot=dict(config), support=support)


def check_adaptation(adapt: str, split: str = "test") -> None:
    """Raises: UnknownName for a way of adapting that there is not; ConfigError where it has seen the tested split."""
    if adapt not in _KINDS:
        raise UnknownName("adaptation", adapt, _KINDS)
    seen = ("train", "val") if _KINDS[adapt].needs_val else ("train",)
    if split in seen:
        raise ConfigError(f"{adapt} reads labels of {' and '.join(seen)}; test it on another split than {split}")


def evaluation_options(options: Sequence[str]) -> list[str]:
    """The options of a data set without those of augmentation."""
    return [option for option in options if option.partition("=")[0] not in _OF_TRAINING]


def _labelled(of: Mapping[str, Any], shots: int, seed: int) -> Any:
    return DATASETS.make(
        dict(type="PartlyLabelled", split="train", of=dict(of), shots=shots, shots_seed=seed, seed=seed)
    )


def _validation(dataset: str, options: Sequence[str], adapt: str) -> Any:
    try:
        return open_split(dataset, "val", options)
    except DataMissing as error:
        raise DataMissing(
            f"{adapt} is chosen on the split val: {error}; or take --adapt clap, which needs none"
        ) from error
