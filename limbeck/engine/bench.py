"""Runs a suite: only what is missing, teachers before students, on local processes or through Ray.

A finished run is a record that was renamed into place; whatever kills this process, finished runs stay, and an
interrupted one goes on from its last epoch next time.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from threading import Thread
from typing import Any, Protocol

from limbeck.engine.config import RunConfig, expand, load_pair
from limbeck.engine.events import Event
from limbeck.engine.output import check_output, exclusive
from limbeck.engine.record import RunRecord
from limbeck.engine.suite import Job, Suite, plan, resolve, state
from limbeck.engine.weights import sha256_json
from limbeck.errors import OutputError, TrainingStopped


@dataclass(frozen=True)
class Paths:
    """Folders of one suite's output."""

    out: Path

    @property
    def records(self) -> Path:
        """One JSON a run."""
        return self.out / "records"

    @property
    def runs(self) -> Path:
        """Weights, logs and checkpoints, a folder a run."""
        return self.out / "runs"

    @property
    def cache(self) -> Path:
        """Teacher caches."""
        return self.out / "cache"


@dataclass
class Outcome:
    """How a suite's runs ended."""

    found: list[str] = field(default_factory=list)
    made: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)


class Pool(Protocol):
    """Where jobs run, and the queue that their events come through."""

    queue: Any

    def submit(self, function: Callable[..., Any], *args: Any) -> Future: ...


def run_suite(
    suite: Suite,
    out: str | Path,
    *,
    seeds: int | None = None,
    only: list[str] | None = None,
    jobs: int = 0,
    threads: int = 1,
    device: str = "cpu",
    ray: str | None = None,
    predictions: bool = True,
    on_event: Callable[[Event], None] = lambda event: None,
) -> Outcome:
    """Make every run of a suite that has no record yet.

    Args:
        out: holds records/, runs/ and cache/.
        jobs: runs at a time; 0 is one a core.
        threads: of each run; figures depend on it in the last bits, so suites use 1.
        ray: address of a Ray cluster that shares `out`, or 'local'.
        predictions: each run saves its student's on the test split.
    Raises: UserError before anything is trained.
    """
    planned = plan(suite, seeds=seeds, only=only)
    common: dict[str, Any] = dict(jobs=jobs, threads=threads, device=device, ray=ray, predictions=predictions)
    return run_jobs(planned, out, on_event=on_event, **common)


def run_jobs(
    planned: list[Job],
    out: str | Path,
    *,
    jobs: int = 0,
    threads: int = 1,
    device: str = "cpu",
    ray: str | None = None,
    predictions: bool = True,
    on_event: Callable[[Event], None] = lambda event: None,
) -> Outcome:
    """Make the runs of a plan that have no record yet; a run's teachers have to be in the plan. See `run_suite`.

    Raises: UserError before anything is trained.
    """
    paths = Paths(Path(out))
    workers = jobs or os.cpu_count() or 1
    check_output(paths.out)
    outcome = Outcome()
    with exclusive(paths.out):
        todo = _missing(planned, paths, outcome, on_event)
        if todo:
            opened = _ray_pool(ray, threads, device) if ray else _local_pool(workers, threads)
            with opened as pool, _listening(pool.queue, on_event):
                _drive(
                    todo, pool, _Settings(paths, device, threads, workers, predictions=predictions), outcome, on_event
                )
    return outcome


@dataclass(frozen=True)
class _Settings:
    paths: Paths
    device: str
    threads: int
    jobs: int
    latency: dict[str, float] = field(default_factory=dict)  # by the sha256 of a model's config
    predictions: bool = True


def _missing(planned: list[Job], paths: Paths, outcome: Outcome, on_event: Callable[[Event], None]) -> list[Job]:
    """Jobs without a current record; a teacher whose weights are gone is made again when a student needs it."""
    needed: set[str] = set()
    todo: set[str] = set()
    for job in reversed(planned):  # students before their teachers
        weights = paths.runs / job.id / "student.safetensors"
        if state(job, paths.records)[0] != "done" or (job.id in needed and not weights.is_file()):
            todo.add(job.id)
            needed.update(job.teacher_ids.values())
    outcome.found = [job.id for job in planned if job.id not in todo]
    for identity in outcome.found:
        on_event(Event("skip", identity))
    return [job for job in planned if job.id in todo]


def _runs(todo: list[Job]) -> list[Job]:
    """The jobs that are started: of those which one and the same run makes, the first."""
    made: set[str] = set()
    runs = []
    for job in todo:
        if job.id not in made:
            runs.append(job)
            made.update(job.same_run)
    return runs


def _drive(
    todo: list[Job], pool: Pool, settings: _Settings, outcome: Outcome, on_event: Callable[[Event], None]
) -> None:
    configs = list(dict.fromkeys(job.config for job in todo))
    for config in configs:  # alone on the machine: latency is a figure
        methods = list(dict.fromkeys(job.method for job in todo if job.config == config))
        task = pool.submit(measure_models, config, methods, settings.device, settings.threads)
        settings.latency.update(task.result())
    waiting, running = _runs(todo), {}
    teachers = {identity for job in todo for identity in job.teacher_ids.values()}
    pending = {job.id for job in todo if job.id in teachers}
    try:
        while waiting or running:
            ready = [j for j in waiting if len(running) < settings.jobs and pending.isdisjoint(j.teacher_ids.values())]
            for job in ready[: settings.jobs - len(running)]:
                waiting.remove(job)
                if any(identity in outcome.failed for identity in job.teacher_ids.values()):
                    _failed(job, "its teacher failed", outcome, on_event)
                    continue
                on_event(Event("start", job.id))
                running[pool.submit(run_job, job.model_dump(), settings)] = job
            done, _ = wait(running, return_when=FIRST_COMPLETED) if running else (set(), set())
            for future in done:
                job = running.pop(future)
                _settle(job, future, outcome, on_event)
                pending.discard(job.id)
    except BrokenProcessPool as error:
        raise OutputError(
            "a worker process was killed (out of memory?); finished runs are kept: run the same command again, "
            "with --jobs 1 if it recurs"
        ) from error


def _settle(job: Job, future: Future, outcome: Outcome, on_event: Callable[[Event], None]) -> None:
    try:
        text = future.result()
    except TrainingStopped as error:
        _failed(job, str(error), outcome, on_event)
    else:
        for identity in (job.id, *job.same_run):
            outcome.made.append(identity)
            on_event(Event("finish", identity, text=text if identity == job.id else f"in the run of {job.id}"))


def _failed(job: Job, text: str, outcome: Outcome, on_event: Callable[[Event], None]) -> None:
    for identity in (job.id, *job.same_run):
        outcome.failed[identity] = text
        on_event(Event("fail", identity, text=text))


def run_job(job: dict[str, Any], settings: _Settings) -> str:
    """One job, in a worker process; gives the primary metric as text."""
    from limbeck.engine.run import RunOptions, execute

    parsed = Job.model_validate(job)
    config = resolve(parsed, settings.paths.records)

    def report(stage: str, done: int, total: int) -> None:
        _EVENTS.put(Event("step", parsed.id, done, total, stage))

    options = RunOptions(
        out=settings.paths.runs,
        records=settings.paths.records,
        cache=settings.paths.cache,
        device=settings.device,
        threads=settings.threads,
        concurrent_jobs=settings.jobs,
        latency_ms=settings.latency.get(_deployed(config)),
        companion_latency_ms={
            run.model["deploy"]: settings.latency[_deployed(run)]
            for run in config.companion_runs()
            if _deployed(run) in settings.latency
        },
        predictions=settings.predictions,
        progress=report,
        drop_other=True,
    )
    record = execute(config, options)
    assert isinstance(record, RunRecord)  # rank 0 always has one
    return f"{record.primary_metric} {record.value:.2f}"


def measure_models(config: str, methods: list[str], device: str, threads: int) -> dict[str, float]:
    """Median single-sample latency in milliseconds of what each method deploys, by the sha256 of its model's config."""
    import torch

    from limbeck.engine.cost import median_latency, set_threads
    from limbeck.engine.registry import ADAPTERS, MODELS

    set_threads(threads)
    pair = load_pair(config)
    adapter = ADAPTERS.make(pair.adapter)
    found: dict[str, float] = {}
    for method in methods:
        run = expand(pair, method, 0)
        if _deployed(run) in found:
            continue
        model = MODELS.make(run.deployed).to(device)
        example = adapter.member_inputs(adapter.example(model), model, model)
        if isinstance(example, torch.Tensor):
            found[_deployed(run)] = median_latency(model, example)
    return found


def _deployed(run: RunConfig) -> str:
    return sha256_json(run.deployed)


# --- where jobs run ---


class _LocalPool:
    """Processes that share one queue of events."""

    def __init__(self, workers: int) -> None:
        context = multiprocessing.get_context("spawn")
        self.queue: Any = context.Queue()
        self.executor = ProcessPoolExecutor(
            max_workers=workers, mp_context=context, initializer=_start_worker, initargs=(self.queue,)
        )

    def submit(self, function: Callable[..., Any], *args: Any) -> Future:
        return self.executor.submit(function, *args)


_EVENTS: Any = None  # of this worker process: a queue cannot travel with a job, only with the process


def _start_worker(queue: Any) -> None:
    """Keep the queue, and end when the suite's process is killed: else a worker would hold its run's folder.

    Events that nobody reads any more, because the suite stopped with an error, do not hold the process either.
    """
    import threading
    import time

    global _EVENTS
    _EVENTS = queue
    queue.cancel_join_thread()
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


@contextmanager
def _local_pool(workers: int, threads: int) -> Iterator[_LocalPool]:
    os.environ.setdefault("OMP_NUM_THREADS", str(threads))  # read by the workers when they import torch
    pool = _LocalPool(workers)
    try:
        yield pool
    finally:
        pool.executor.shutdown(wait=False, cancel_futures=True)


class _RayPool:
    """Ray behind the executor's `submit`."""

    def __init__(self, threads: int, gpus: int) -> None:
        import ray
        from ray.util.queue import Queue

        self._remote = ray.remote(num_cpus=threads, num_gpus=gpus, max_retries=0)(_call)
        self.queue: Any = Queue()

    def submit(self, function: Callable[..., Any], *args: Any) -> Future:
        return self._remote.remote(self.queue, function, *args).future()


def _call(queue: Any, function: Callable[..., Any], *args: Any) -> Any:
    global _EVENTS
    _EVENTS = queue
    return function(*args)


@contextmanager
def _ray_pool(address: str, threads: int, device: str) -> Iterator[_RayPool]:
    from limbeck.engine.registry import require

    ray = require("ray", "--ray", "bench")
    started = not ray.is_initialized()
    if started:
        ray.init(address=None if address == "local" else address, log_to_driver=False, include_dashboard=False)
    try:
        yield _RayPool(threads, gpus=0 if device == "cpu" else 1)
    finally:
        if started:
            ray.shutdown()


@contextmanager
def _listening(queue: Any, on_event: Callable[[Event], None]) -> Iterator[None]:
    """Drain the events of workers into a display, in a thread here."""

    def drain() -> None:
        while (event := queue.get()) is not None:
            on_event(event)

    thread = Thread(target=drain, daemon=True)
    thread.start()
    try:
        yield
    finally:
        queue.put(None)
        thread.join(timeout=5)
