"""Evaluation: one loop for every member, split and purpose, so that all figures are made in one way."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping
from inspect import signature
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn
from torch.utils.data import DataLoader

from limbeck.engine.adapter import Batch, TaskAdapter
from limbeck.engine.config import PRETRAINED, DataConfig, RunConfig, parse
from limbeck.engine.cost import evaluating
from limbeck.engine.predictions import PredictionCache
from limbeck.engine.registry import ADAPTERS, DATASETS, MODELS, accepted_keys
from limbeck.engine.shared_data import make_dataset
from limbeck.engine.weights import load_into
from limbeck.errors import ConfigError, DataMissing


def whole_batch(batch: Any) -> Any:
    """Collate function of data sets that give whole batches."""
    return batch


def build_dataset(data: DataConfig, split: str, *, seed: int | None = None) -> Any:
    """The data set of one split; `seed` is of its augmentation, where the config names none."""
    cfg = dict(getattr(data, split))
    if seed is not None and "seed" in (accepted_keys(DATASETS.lookup(cfg.get("type", ""))) or ()):
        cfg.setdefault("seed", seed)
    return make_dataset(cfg, where=f"in data.{split}")


def further_loaders(data: DataConfig) -> dict[str, DataLoader]:
    """Loaders of the further test sets, `data.also`, by name; one that is not on this machine is left out, and said."""
    found: dict[str, DataLoader] = {}
    for name, cfg in data.also.items():
        try:
            dataset = make_dataset(dict(cfg), where=f"in data.also.{name}")
        except DataMissing as error:
            warnings.warn(f"there will be no figures of {name}: {error}", stacklevel=2)
        else:
            found[name] = eval_loader(data, name, dataset)
    return found


def eval_loader(data: DataConfig, split: str, dataset: Any = None) -> DataLoader:
    """Batches of a split in order, nothing dropped."""
    return DataLoader(
        build_dataset(data, split) if dataset is None else dataset,
        batch_size=data.eval_batch_size,
        shuffle=False,
        num_workers=data.num_workers,
        collate_fn=whole_batch,
        generator=torch.Generator().manual_seed(0),  # else every pass draws a number from the training's generator
    )


def read_batches(adapter: TaskAdapter, loader: Iterable[Any], preprocess: nn.Module) -> Iterator[Batch]:
    """A loader's batches as the deployed member's preprocessing and the adapter make them."""
    for data in loader:
        ready = cast(dict[str, Any], preprocess(data, False))
        yield adapter.batch(ready["inputs"], ready["data_samples"])


@torch.no_grad()
def predictions_of(
    model: nn.Module, adapter: TaskAdapter, loader: Iterable[Any], preprocess: nn.Module
) -> list[dict[str, Any]]:
    """What the deployed member predicts on every batch of a loader, in its order; in evaluation mode."""
    preprocess = preprocess.to(next(model.parameters()).device)
    found: list[dict[str, Any]] = []
    with evaluating(model):
        for batch in read_batches(adapter, loader, preprocess):
            found += adapter.predict(model, adapter.member_inputs(batch, model, model), batch)
    return found


@torch.no_grad()
def evaluate(
    model: nn.Module,
    *,
    adapter: TaskAdapter,
    loader: DataLoader,
    metric: Any,
    deploy: nn.Module | None = None,
    preprocessor: nn.Module | None = None,
    teacher: nn.Module | None = None,
    cache: PredictionCache | None = None,
) -> dict[str, float]:
    """The metric's values for one model over a loader.

    Args:
        deploy: the member whose preprocessing the loader's batches get; `model` unless it is a teacher.
        preprocessor: that preprocessing, where it is built already.
        teacher: adds agreement with this member, where the metric has it.
        cache: keeps frozen members' predictions from one run of a suite to the next.
    """
    base = model if deploy is None else deploy
    preprocess = adapter.preprocessor(base) if preprocessor is None else preprocessor
    preprocess = preprocess.to(next(model.parameters()).device)
    members = [model] if teacher is None else [model, teacher]
    modes = [m.training for m in members]
    for member in members:
        member.eval()
    metric.reset()
    kept = [None if cache is None else cache.load(member, loader) for member in members]
    made: list[list[Any] | None] = [  # what is not kept would only fill memory
        [] if cache is not None and old is None and cache.keeps(member, loader) else None
        for member, old in zip(members, kept)
    ]
    for index, batch in enumerate(read_batches(adapter, loader, preprocess)):
        found = [
            adapter.predict(m, adapter.member_inputs(batch, base, m), batch) if old is None else [old[index]]
            for m, old in zip(members, kept)
        ]
        if len(found) == 2 and any(a is b for a, b in zip(*found)):
            raise ConfigError(
                f"{type(adapter).__name__}.predict gave student and teacher the same objects; it must return fresh ones"
            )
        metric.update(*found)
        for mine, new in zip(made, found):
            if mine is not None:
                mine.append(new)
    for member, mode, mine in zip(members, modes, made):
        member.train(mode)
        if cache is not None and mine is not None and all(len(new) == 1 for new in mine):
            cache.save(member, loader, [new[0] for new in mine])
    return metric.values()


def without_pretrained(model: Mapping[str, Any]) -> dict[str, Any]:
    """A model's config, and its backbone's, for weights that come next: nothing is downloaded to be overwritten."""
    named = signature(MODELS.lookup(str(model["type"]))).parameters
    own = {**model, **{key: False for key in PRETRAINED if key in named or key in model}}
    inner = model.get("backbone")
    return {**own, "backbone": without_pretrained(inner)} if isinstance(inner, Mapping) and "type" in inner else own


def evaluate_weights(config: Mapping[str, Any], weights: str | Path, *, device: str = "cpu") -> dict[str, float]:
    """Re-evaluate saved student weights on the test split of a record's config, and on its further test sets.

    Agreement with the teacher is left out: it needs the teacher's weights.
    """
    run = parse(RunConfig, dict(config), "record config")
    adapter = cast(TaskAdapter, ADAPTERS.make(run.model["adapter"]))
    model = MODELS.make(without_pretrained(run.deployed))
    load_into(model, weights)
    model.to(device)
    loaders = {"": eval_loader(run.data, "test"), **further_loaders(run.data)}
    found: dict[str, float] = {}
    for name, loader in loaders.items():
        metric = run.metric.build()
        found |= named(evaluate(model, adapter=adapter, loader=loader, metric=metric), name)
    return found


def named(figures: Mapping[str, Any], data: str) -> dict[str, Any]:
    """Figures of a further test set under its name, 'kitti-frames.bev_ap40'; those of the test split have none."""
    return {f"{data}.{name}" if data else name: value for name, value in figures.items()}
