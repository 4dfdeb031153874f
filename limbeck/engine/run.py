"""One run: build, check, train, save the student, test what was saved, write the record."""

from __future__ import annotations

import gc
import json
import logging
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from copy import deepcopy
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from mmengine.hooks import Hook
from torch.utils.data import DataLoader

from limbeck.engine import cost
from limbeck.engine.cache import TeacherCache, cache_key
from limbeck.engine.config import RunConfig
from limbeck.engine.distiller import Distiller
from limbeck.engine.evaluate import build_dataset, eval_loader, evaluate, further_loaders, whole_batch
from limbeck.engine.hooks import (
    Facts,
    Progress,
    ResumeHook,
    SelectHook,
    StateHook,
    TeacherCheckHook,
    last_checkpoint,
)
from limbeck.engine.log import LogHook
from limbeck.engine.loop import Loop
from limbeck.engine.mixed import MixedBatchSampler
from limbeck.engine.output import check_output, exclusive, pick_device
from limbeck.engine.predictions import PredictionCache
from limbeck.engine.prepare import fit_deployed, prepare_links
from limbeck.engine.record import RunRecord, config_hash, write_failure, write_record
from limbeck.engine.registry import LOOPS
from limbeck.engine.report import Ended, build_failure, build_record
from limbeck.engine.runner import DistillRunner, build_optim_wrapper
from limbeck.engine.saved_predictions import PREDICTIONS_FILE
from limbeck.engine.weights import load_state, save_weights
from limbeck.errors import ConfigError, TrainingStopped

STUDENT_FILE = "student.safetensors"


@dataclass
class RunOptions:
    """Where and how a run happens; nothing here changes its figures but for float rounding.

    out: folder of runs; this run uses `<out>/<record id>/`.
    records: folder of records; None writes none.
    cache: folder of teacher caches.
    teachers: folder of runs in which 'run://' weights are looked up; `out` where not given.
    latency_ms: student latency that was measured elsewhere on an idle machine; None measures after training.
    companion_latency_ms: the same of companions, by member.
    resume: go on from the last epoch of an interrupted run.
    drop_other: an interrupted run of another config, in the same folder, is forgotten instead of refused.
    predictions: save what the metric saw of the test split beside the student; see `limbeck.engine.saved_predictions`.
    hooks: further mmengine hooks that look on; one that draws random numbers or changes the model changes the figures.
    """

    out: Path
    records: Path | None = None
    cache: Path | None = None
    teachers: Path | None = None
    device: str = "cpu"
    launcher: str = "none"
    threads: int | None = None
    concurrent_jobs: int = 1
    latency_ms: float | None = None
    companion_latency_ms: Mapping[str, float] = field(default_factory=dict)
    resume: bool = True
    drop_other: bool = False
    predictions: bool = True
    progress: Progress | None = None
    hooks: Sequence[Hook] = ()


def execute(config: RunConfig, options: RunOptions) -> RunRecord | None:
    """Run one config to its record; on ranks other than 0 of a distributed run, None.

    The student is saved in half precision, and the metrics are those of the saved file.

    Raises: TrainingStopped after writing a failure record; other UserErrors before training starts.
    """
    device = torch.device(pick_device(options.device))
    if options.launcher != "none":
        device = _init_distributed(device, options.launcher)
    rank, world = _rank_world()
    folder = options.out / config.id
    cost.set_threads(options.threads)
    if config.loop and world > 1:
        raise ConfigError(f"{config.method} is a loop of runs, which one process makes; use --launcher none")
    if rank:
        return _train(config, options, folder, device, world)
    check_output(folder)
    if options.records is not None:
        check_output(options.records)
    with exclusive(folder):
        try:
            if config.loop:
                return cast(Loop, LOOPS.make(config.loop)).run(config, options, folder)
            return _train(config, options, folder, device, world)
        except TrainingStopped as error:
            if options.records is not None:
                write_failure(options.records, build_failure(config, error))
            raise
        finally:
            gc.collect()  # a runner and its model name each other: the data of several runs would wait in memory


def _train(config: RunConfig, options: RunOptions, folder: Path, device: torch.device, world: int) -> RunRecord | None:
    digest = config_hash(config.model_dump(mode="json"))
    rank, _ = _rank_world()
    if not config.recipe.epochs and config.model.get("links"):
        raise ConfigError(f"{config.method} has links, and recipe.epochs=0 trains nothing; set 1 or more")
    peak = cost.PeakMemory(device)
    config.metric.build()  # what it lacks is said before training, not after
    model_cfg = {k: v for k, v in config.model.items() if k != "type"}
    model = Distiller(**deepcopy(model_cfg), seed=config.seed, runs=options.teachers or options.out)
    if config.recipe.channels_last:
        model = cast(Distiller, model.to(memory_format=torch.channels_last))
    loader = train_loader(config, world, rank)
    model.adapter.check_data(model.deploy, loader.dataset)
    for teacher in model.frozen.values():
        model.adapter.check_teacher(teacher, loader.dataset)
    _open_caches(model, config, options, loader)
    model.to(device)
    facts = Facts()
    val, further = eval_loader(config.data, "val"), further_loaders(config.data)
    with facts.timed():
        fit_deployed(model, config, loader.dataset, val.dataset, options.progress)
        prepare_links(model, config)
    kept = None if options.cache is None else PredictionCache(options.cache, model)

    def measure(member: torch.nn.Module) -> dict[str, float]:
        return evaluate(
            member,
            adapter=model.adapter,
            loader=val,
            metric=config.metric.build(),
            deploy=model.deploy,
            preprocessor=model.data_preprocessor,
            cache=kept,
        )

    settled = False  # by the last validation; one that is resumed after the last epoch has none

    def validate() -> dict[str, float]:
        nonlocal settled
        settled = True
        model.adapter.settle(model.deploy, val, model.data_preprocessor)
        return measure(model.deploy)

    keep = config.recipe.selection == "best_val"
    if keep and config.companions:
        raise ConfigError(f"{config.method} keeps several students, and best_val chooses for one; set selection='last'")
    select = SelectHook(facts, config.metric.primary, config.metric.higher_is_better, keep)
    hooks: list[Any] = [StateHook(facts, options.progress), TeacherCheckHook(measure), select]
    hooks += [LogHook(folder / "log.jsonl", facts), ResumeHook(folder, facts, digest), *options.hooks]
    if not options.resume:
        (folder / "last.json").unlink(missing_ok=True)
    checkpoint = last_checkpoint(folder, digest, drop_other=options.drop_other)
    if checkpoint is not None:
        model.teacher_forwards = 0  # the checkpoint's facts hold those of `prepare_links` already
    if config.recipe.epochs:
        _runner(config, model, loader, val, validate, hooks, folder, device, options, checkpoint).train()
    if rank:
        return None
    if keep and select.state is not None:
        load_state(model.deploy, select.state)
    where = cost.environment(device, concurrent_jobs=options.concurrent_jobs, world_size=world)
    ended = partial(
        Ended,
        model=model,
        peak_mb=peak.megabytes(),
        environment=where,
        train=loader,
        val=val,
        further=further,
        predictions=kept,
        save_predictions=options.predictions,
    )
    latency = {**options.companion_latency_ms, config.model["deploy"]: options.latency_ms}
    unvalidated = replace(facts, validations=[])  # a companion was trained in the same steps, and never validated
    kept_runs = [(run, unvalidated, val) for run in config.companion_runs()]
    records = [
        _keep(run, model, options, partial(ended, facts=own, latency_ms=latency.get(run.model["deploy"])), settle_on)
        for run, own, settle_on in (*kept_runs, (config, facts, None if settled else val))
    ]
    for leftover in folder.glob("epoch*.pth"):
        leftover.unlink()
    (folder / "last.json").unlink(missing_ok=True)
    return records[-1]


def _keep(
    config: RunConfig, model: Distiller, options: RunOptions, ended: Callable[..., Ended], settle_on: DataLoader | None
) -> RunRecord:
    """Save the member that this config deploys in its record's folder, test what was saved, and write the record.

    Args:
        ended: makes an `Ended` of the config, the saved file and its sha256.
        settle_on: the validation split, on which the adapter settles what training left open; None where the weights
            that are kept were validated, and so are settled.
    """
    model.redeploy(config.model["deploy"])
    if settle_on is not None:
        model.adapter.settle(model.deploy, settle_on, model.data_preprocessor)
    digest = config_hash(config.model_dump(mode="json"))
    path = options.out / config.id / STUDENT_FILE
    metadata = {"limbeck": json.dumps(dict(id=config.id, config_hash=digest))}  # one key: safetensors shuffles several
    state, dtype = model.deploy.state_dict(), getattr(torch, config.recipe.save_dtype)
    sha256 = save_weights(path, state, metadata=metadata, dtype=dtype)
    path.with_name(PREDICTIONS_FILE).unlink(missing_ok=True)  # of other weights
    record = build_record(ended(config=config, weights=path, sha256=sha256))
    if options.records is not None:
        write_record(options.records, record)
    return record


def train_loader(config: RunConfig, world: int = 1, rank: int = 0) -> DataLoader:
    """Shuffled batches; the order depends on seed and epoch alone, and ranks share one order.

    Augmentation follows the run's seed too, unless a teacher cache wants one pool of views for every seed. A data set
    with `labelled` and `unlabelled` ids gives batches of both.
    """
    from mmengine.dataset import DefaultSampler

    data = config.data
    dataset = build_dataset(data, "train", seed=None if config.cache else config.seed)
    for name in ("batch_size", "unlabelled_batch_size"):
        if (size := getattr(data, name)) % world:
            raise ConfigError(f"data.{name} {size} cannot be split over {world} processes")
    common: dict[str, Any] = dict(num_workers=data.num_workers, collate_fn=whole_batch)
    if hasattr(dataset, "unlabelled"):
        batches = MixedBatchSampler(
            dataset.labelled,
            dataset.unlabelled,
            labelled_per_batch=data.batch_size,
            unlabelled_per_batch=data.unlabelled_batch_size,
            steps=data.steps,
            seed=config.seed,
            rank=rank,
            world=world,
        )
        return DataLoader(dataset, batch_sampler=batches, **common)
    if data.unlabelled_batch_size or data.steps:
        raise ConfigError(
            f"data.unlabelled_batch_size and data.steps are of partly labelled data sets, which {dataset.name} is not; "
            "leave them out, or wrap it in PartlyLabelled"
        )
    return DataLoader(
        dataset,
        batch_size=data.batch_size // world,
        sampler=DefaultSampler(dataset, shuffle=True, seed=config.seed),
        drop_last=len(dataset) >= data.batch_size,
        **common,
    )


def _open_caches(model: Distiller, config: RunConfig, options: RunOptions, loader: DataLoader) -> None:
    """Open a cache for every frozen member whose input is the same whenever a (sample, view) comes again."""
    dataset: Any = loader.dataset
    if config.cache is None or options.cache is None or not model.frozen:
        return
    for link in model.methods():
        if link.alters_batch:
            raise ConfigError(
                f"{link.name} alters the images every step, so the teacher's outputs cannot be cached; "
                f"set cache=False for method {config.method}"
            )
    views = int(getattr(dataset, "views", 0))
    if views < 1:
        raise ConfigError("the teacher cache needs a deterministic pipeline: set views=N in data.train, or cache=None")
    for name in model.frozen:
        shapes = {tap: list(shape[1:]) for tap, shape in model.tap_shapes.get(name, {}).items()}
        if not shapes:
            continue
        _check_rows(model, name, config.method)
        key = cache_key(
            teacher_hash=model.frozen_hashes[name],
            pipeline=dataset.pipeline(),
            shapes=shapes,
            dtype=config.cache.dtype,
            inputs=dict(adapter=model.adapter.describe(model.deploy, model.frozen[name]), teacher=model.identity(name)),
        )
        model.caches[name] = TeacherCache(
            options.cache / key[:32], shapes=shapes, samples=len(dataset), views=views, dtype=config.cache.dtype
        )


def _check_rows(model: Distiller, name: str, method: str) -> None:
    """Raises: ConfigError for a tap whose rows are not the samples of a batch."""
    for tap, shape in model.tap_shapes[name].items():
        if shape[:1] != (model.example_size,):
            raise ConfigError(
                f"tap {tap!r} of {name!r} gives {shape} for {model.example_size} samples, so a cache cannot keep it by "
                f"sample; set cache=False for method {method}"
            )


def _runner(
    config: RunConfig,
    model: Distiller,
    loader: DataLoader,
    val: DataLoader,
    validate: Callable[[], dict[str, float]],
    hooks: list[Any],
    folder: Path,
    device: torch.device,
    options: RunOptions,
    checkpoint: Path | None,
) -> DistillRunner:
    recipe = config.recipe
    logging.getLogger("mmengine").setLevel(logging.ERROR)
    runner_class = type("DistillRunner", (DistillRunner,), {})
    runner_class.device = device
    runner_class.find_unused_parameters = (
        model.task_weight == 0
        or model.task_scheduled
        or any(
            link.unused_parameters
            or ((link.scheduled or not link.weight) and any(p.requires_grad for p in link.parameters()))
            for link in model.methods()
        )
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # mmengine warns of torch features that it does not use here
        runner = runner_class(
            model=model,
            work_dir=str(folder),
            train_dataloader=loader,
            val_dataloader=val,
            val_evaluator=cast(Any, validate),
            train_cfg=dict(by_epoch=True, max_epochs=recipe.epochs, val_interval=recipe.val_interval or recipe.epochs),
            val_cfg=dict(type="EvaluateLoop"),
            optim_wrapper=build_optim_wrapper(model, model.links, recipe),
            param_scheduler=_schedulers(recipe.param_scheduler, recipe.epochs),
            default_hooks=cast(Any, dict(logger=None, checkpoint=None)),
            custom_hooks=hooks,
            load_from=None if checkpoint is None else str(checkpoint),
            resume=checkpoint is not None,
            launcher=options.launcher,
            log_level="ERROR",
            randomness=dict(seed=config.seed),
            experiment_name=f"{config.id.replace('/', '.')}.{os.getpid()}.{id(model)}",
        )
    # mmengine makes a folder for logs that this runner does not write; another rank may have removed it already.
    with suppress(OSError):
        Path(runner.log_dir).rmdir()
    return runner


def _schedulers(configs: list[dict[str, Any]], epochs: int) -> list[dict[str, Any]] | None:
    """mmengine scheduler configs, stepped every iteration, ending with the run where they name no end."""
    ready = []
    for cfg in configs:
        scheduler = dict(cfg)
        if scheduler.pop("per_iteration", True) and scheduler.get("by_epoch", True):
            scheduler.update(by_epoch=True, convert_to_iter_based=True)
        if scheduler["type"] == "CosineAnnealingLR":
            scheduler.setdefault("T_max", epochs - scheduler.get("begin", 0))
        scheduler.setdefault("end", epochs)
        ready.append(scheduler)
    return ready or None


def _init_distributed(device: torch.device, launcher: str) -> torch.device:
    """Join the process group, gloo on the CPU and NCCL on GPUs; gives this process its own device."""
    import torch.distributed as dist
    from mmengine.dist import init_dist

    if launcher not in ("pytorch", "slurm"):
        raise ConfigError(f"launcher {launcher!r} is none of none, pytorch, slurm")
    if device.type == "cuda":
        init_dist(launcher, backend="nccl")
        return torch.device("cuda", torch.cuda.current_device())
    if launcher == "pytorch" and "RANK" not in os.environ:
        raise ConfigError(
            "--launcher pytorch wants torchrun: torchrun --nproc-per-node 2 -m limbeck train CONFIG --launcher pytorch"
        )
    if not dist.is_initialized():
        if launcher == "slurm":
            os.environ.setdefault("RANK", os.environ["SLURM_PROCID"])
            os.environ.setdefault("WORLD_SIZE", os.environ["SLURM_NTASKS"])
            os.environ.setdefault("LOCAL_RANK", os.environ.get("SLURM_LOCALID", "0"))
        dist.init_process_group("gloo")
    return device


def _rank_world() -> tuple[int, int]:
    from mmengine.dist import get_rank, get_world_size

    return get_rank(), get_world_size()
