"""What is learnt of the training split before the first step: by links, and by networks that are fitted at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from limbeck.engine.adapter import FitData
from limbeck.engine.config import DataConfig, RunConfig
from limbeck.engine.distiller import Distiller, isolated_rng
from limbeck.engine.evaluate import build_dataset, eval_loader, read_batches
from limbeck.engine.method import Method, TrainingSet
from limbeck.errors import ConfigError, UnknownName


def prepare_links(model: Distiller, config: RunConfig) -> None:
    """Let every link with `wants_data` read the training split, without its augmentation.

    A resumed run does it again, and then takes the saved buffers.

    Raises: ConfigError for a data set without ids.
    """
    wanting = [(i, link) for i, link in enumerate(model.methods()) if link.wants_data and link.weight]
    if not wanting:
        return
    plain = unaugmented(config.data)
    dataset = build_dataset(plain, "train")
    labels = getattr(dataset, "labels", None)
    for index, link in wanting:
        data = TrainingSet(
            labels=torch.as_tensor([] if labels is None else labels, dtype=torch.int64),
            classes=len(dataset.classes),
            teacher_taps=_reader(model, link, plain, dataset),
        )
        with isolated_rng(model.seed, f"prepare {index}"):
            link.prepare(data)


def fit_deployed(
    model: Distiller, config: RunConfig, train: Any, val: Any, report: Callable[[str, int, int], None] | None
) -> None:
    """Fit the deployed member where its task's adapter says that it is fitted, as a few-shot teacher is.

    Args:
        train, val: the data sets.
    Raises: ConfigError for a recipe that would also train it by steps.
    """
    if not model.adapter.fits(model.deploy):
        return
    if config.recipe.epochs:
        raise ConfigError(
            f"{config.method}: {type(model.deploy).__name__} is fitted at once; set epochs=0 in its recipe, which has "
            f"{config.recipe.epochs}"
        )
    plain = build_dataset(unaugmented(config.data), "train")
    model.adapter.fit(model.deploy, FitData(train=train, plain=plain, val=val, seed=config.seed, report=report))


def unaugmented(data: DataConfig) -> DataConfig:
    """The data's config with a training split that is not augmented."""
    plain = data.model_copy(deep=True)
    for images in (plain.train, plain.train.get("of") or {}):  # of a partly labelled set: what it wraps
        if images.get("augment") is not None:
            images["augment"] = None
    return plain


def _reader(
    model: Distiller, link: Method, plain: Any, dataset: Any
) -> Callable[..., Iterator[tuple[list[Tensor], Tensor, Tensor]]]:
    taps = [teacher for teacher, _ in link.taps]

    def read(name: str | None = None) -> Iterator[tuple[list[Tensor], Tensor, Tensor]]:
        name = link.teachers[0] if name is None else name
        if name not in link.teachers:
            raise UnknownName("teacher", name, link.teachers, f"of {link.name}")
        device = next(model.deploy.parameters()).device
        for batch in read_batches(model.adapter, eval_loader(plain, "train", dataset), model.data_preprocessor):
            if batch.ids is None:
                raise ConfigError(
                    f"{link.name} needs the id of every sample, which {type(dataset).__name__} does not give"
                )
            found = model.member_taps(name, batch, taps)
            yield [found[tap].to(device) for tap in taps], batch.targets, batch.ids

    return read
