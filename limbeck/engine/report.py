"""From a run that ended to its record: test what was saved, and write down what happened."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import torch
from torch.utils.data import DataLoader

from limbeck.engine import cost
from limbeck.engine.config import PLAIN, RunConfig, is_teacher
from limbeck.engine.distiller import Distiller
from limbeck.engine.evaluate import eval_loader, evaluate, named
from limbeck.engine.hooks import Facts
from limbeck.engine.predictions import PredictionCache
from limbeck.engine.record import (
    Cost,
    DataInfo,
    Environment,
    FailureRecord,
    FurtherData,
    ModelInfo,
    Recipe,
    RunRecord,
    config_hash,
    record_id,
)
from limbeck.engine.saved_predictions import PREDICTIONS_FILE, PredictionRecorder
from limbeck.engine.weights import load_into
from limbeck.errors import TrainingStopped


@dataclass(frozen=True)
class Ended:
    """A run whose student is saved.

    weights, sha256: the saved student.
    peak_mb: of the training, before anything is tested.
    train, val: the loaders that were used; further: of the further test sets, by name.
    latency_ms: measured elsewhere; None measures now.
    predictions: of frozen members, kept from run to run.
    save_predictions: the student's on the test split, beside its weights; see `limbeck.engine.saved_predictions`.
    """

    config: RunConfig
    model: Distiller
    facts: Facts
    weights: Path
    sha256: str
    peak_mb: float
    environment: Environment
    train: DataLoader
    val: DataLoader
    further: Mapping[str, DataLoader]
    latency_ms: float | None
    predictions: PredictionCache | None = None
    save_predictions: bool = True


def build_record(run: Ended) -> RunRecord:
    """Load the saved student back, test it, save its predictions, and fill the record."""
    config, model = run.config, run.model
    load_into(model.deploy, run.weights, sha256=run.sha256)  # the metrics are those of the saved file
    test = eval_loader(config.data, "test")
    metric = config.metric.build()
    common: dict[str, Any] = dict(adapter=model.adapter, preprocessor=model.data_preprocessor, deploy=model.deploy)
    teacher = next(iter(model.frozen.values()), None)  # of several, the first; the config has them all
    seen = PredictionRecorder(metric) if run.save_predictions else None
    metrics = evaluate(
        model.deploy, loader=test, metric=seen or metric, teacher=teacher, cache=run.predictions, **common
    )
    per_class = metric.per_class()
    identity = config.model_dump(mode="json")
    digest, place = config_hash(identity), run.weights.with_name(PREDICTIONS_FILE)
    predictions = None if seen is None else seen.save(place, id=config.id, config_hash=digest)
    for name, loader in run.further.items():
        metrics |= named(evaluate(model.deploy, loader=loader, metric=metric, **common), name)
        per_class |= named(metric.per_class(), name)
    val_metrics = evaluate(model.deploy, loader=run.val, metric=metric, **common)
    members = config.model["members"]
    teacher_cfg = next((cfg for cfg in members.values() if cfg["type"] == "frozen"), None)
    linked = config.method != PLAIN and not is_teacher(config.method)
    return RunRecord(
        task=config.task,
        benchmark=config.benchmark,
        benchmark_version=config.benchmark_version,
        pair=config.pair,
        method=config.method,
        seed=config.seed,
        data=_data(run, test),
        teacher=None if teacher is None or teacher_cfg is None else _model(model, teacher, teacher_cfg["model"]),
        student=_model(model, model.deploy, members[model.specs[model.deploy_name].of or model.deploy_name]["model"]),
        config=identity,
        config_hash=digest,
        metrics=metrics,
        val_metrics=val_metrics,
        per_class={m: dict(zip(cast(Any, test.dataset).classes, values)) for m, values in per_class.items()},
        primary_metric=config.metric.primary,
        higher_is_better=config.metric.higher_is_better,
        recipe=_recipe(run),
        cost=_cost(run),
        environment=run.environment,
        student_sha256=run.sha256,
        initial_hash=model.initial_hash,
        predictions_sha256=predictions,
        teacher_record=_teacher_record(teacher_cfg),
        plain_record=record_id(config.benchmark, config.pair, PLAIN, config.seed) if linked else None,
        assumption=" ".join(dict.fromkeys(link.assumption for link in model.methods() if link.assumption)) or None,
        finished=_now(),
    )


def build_failure(config: RunConfig, error: TrainingStopped) -> FailureRecord:
    """What is written of a run that a guard stopped."""
    return FailureRecord(
        benchmark=config.benchmark,
        pair=config.pair,
        method=config.method,
        seed=config.seed,
        error=type(error).__name__,
        message=str(error),
        config_hash=config_hash(config.model_dump(mode="json")),
        finished=_now(),
    )


def describe_model(model: torch.nn.Module, cfg: Mapping[str, Any], example: Any) -> ModelInfo:
    """Name, parameters and floating-point operations of an architecture."""
    flops = cost.count_flops(model, example) if isinstance(example, cost.Example) else None
    name = _network_name(cfg, type(model).__name__)
    return ModelInfo(name=name, parameters=cost.count_parameters(model), flops=flops)


def _network_name(cfg: Mapping[str, Any], kind: str) -> str:
    kind = str(cfg.get("type", kind))
    said = [
        str(cfg[k]) if k == "model" else f"{k} {cfg[k]}" for k in ("model", "depth", "width", "variant") if k in cfg
    ]
    inner, backbone = cfg.get("config"), cfg.get("backbone", cfg.get("zero_shot"))
    if isinstance(inner, Mapping):  # an OpenMMLab config: what it is, and its backbone
        backbone = inner.get("backbone") or {}
        widths = [f"{k} {backbone[k]}" for k in ("depth", "base_channels", "widen_factor") if k in backbone]
        said = [" ".join([str(backbone.get("type", inner.get("type", ""))), *widths])]
    elif isinstance(backbone, Mapping):
        said = [_network_name(backbone, ""), *said]
    return f"{kind} ({', '.join(said)})" if said else kind


def _example(model: Distiller, member: torch.nn.Module) -> Any:
    return model.adapter.member_inputs(model.adapter.example(model.deploy), model.deploy, member)


def _model(model: Distiller, member: torch.nn.Module, cfg: Mapping[str, Any]) -> ModelInfo:
    return describe_model(member, cfg, _example(model, member))


def _data(run: Ended, test: DataLoader) -> DataInfo:
    train, val, tested = (cast(Any, loader.dataset) for loader in (run.train, run.val, test))
    also = {name: cast(Any, loader.dataset) for name, loader in run.further.items()}
    return DataInfo(
        name=tested.name,
        content_hash=tested.content_hash,
        train_hash=train.content_hash,
        val_hash=val.content_hash,
        classes=list(tested.classes),
        train_samples=len(train),
        val_samples=len(val),
        test_samples=len(tested),
        also={n: FurtherData(content_hash=found.content_hash, samples=len(found)) for n, found in also.items()},
    )


def _recipe(run: Ended) -> Recipe:
    facts, recipe = run.facts, run.config.recipe
    return Recipe(
        batch_size=facts.batch_size,
        learning_rate_first=facts.lr_first or 0.0,
        learning_rate_max=facts.lr_max,
        learning_rate_last=facts.lr_last,
        epochs=recipe.epochs,
        steps=facts.steps,
        optimizer=recipe.optimizer["type"],
        selection=recipe.selection,
    )


def _cost(run: Ended) -> Cost:
    latency, example = run.latency_ms, _example(run.model, run.model.deploy)
    if latency is None and isinstance(example, cost.Example):
        latency = cost.median_latency(run.model.deploy, example)
    return Cost(
        train_seconds=round(run.facts.train_seconds, 3),
        samples_seen=run.facts.samples_seen,
        teacher_forwards=run.facts.teacher_forwards,
        peak_memory_mb=round(run.peak_mb, 1),
        student_latency_ms=None if latency is None else round(latency, 4),
    )


def _teacher_record(teacher: Mapping[str, Any] | None) -> str | None:
    weights = "" if teacher is None else str(teacher.get("weights") or "")
    return weights.removeprefix("run://") if weights.startswith("run://") else None


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
