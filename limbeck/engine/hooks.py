"""Hooks of a run: progress, what really happened (for the record), exact resume, teacher check."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper

from limbeck.engine.distiller import Distiller
from limbeck.engine.weights import sha256_file, write_json
from limbeck.errors import ConfigError, CorruptFile, TeacherOff

REPORT_SECONDS = 0.1  # between two progress reports
Progress = Callable[[str, int, int], None]
"""progress(stage, done, total): called as a run goes on; steps while training, batches while testing."""


def distiller_of(runner: Any) -> Distiller:
    """The Distiller behind a runner's model, unwrapped."""
    model = runner.model
    return cast(Distiller, model.module if is_model_wrapper(model) else model)


@dataclass
class Facts:
    """What a run did, as it was; survives a resume."""

    lr_first: float | None = None
    lr_max: float = 0.0
    lr_last: float = 0.0
    batch_size: int = 0
    steps: int = 0
    samples_seen: int = 0
    teacher_forwards: int = 0
    train_seconds: float = 0.0
    best: dict[str, float] = field(default_factory=dict)
    last_val: dict[str, float] = field(default_factory=dict)
    epochs: list[tuple[int, float, dict[str, float]]] = field(default_factory=list)
    validations: list[tuple[int, dict[str, float]]] = field(default_factory=list)

    @contextmanager
    def timed(self) -> Iterator[None]:
        """Count what happens inside as training time."""
        start = time.perf_counter()
        yield
        self.train_seconds += time.perf_counter() - start


class StateHook(Hook):
    """Tells the model where the run is, moves EMA members, and notes rate, batch, samples and time as they were."""

    priority = "VERY_HIGH"

    def __init__(self, facts: Facts, progress: Progress | None = None) -> None:
        self.facts = facts
        self.report = progress
        self._clock = 0.0
        self._reported = 0.0

    def before_train_epoch(self, runner: Any) -> None:
        dataset = runner.train_dataloader.dataset
        if hasattr(dataset, "set_epoch"):
            dataset.set_epoch(runner.epoch)
        self._clock = time.perf_counter()

    def before_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None) -> None:
        model = distiller_of(runner)
        model.iteration = runner.iter
        model.progress = runner.iter / runner.max_iters
        rate = runner.optim_wrapper.get_lr()
        rates = rate.get("lr") or rate["main.lr"]  # a link with an optimiser of its own is not the recipe's
        facts = self.facts
        facts.lr_first = rates[0] if facts.lr_first is None else facts.lr_first
        facts.lr_max = max(facts.lr_max, *rates)
        facts.lr_last = rates[0]

    def after_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        distiller_of(runner).update_shadows()
        size = _length(data_batch) * runner.world_size
        self.facts.batch_size = max(self.facts.batch_size, size)
        self.facts.samples_seen += size
        self.facts.steps += 1
        now = time.perf_counter()
        if self.report is not None and (now - self._reported > REPORT_SECONDS or runner.iter + 1 == runner.max_iters):
            self._reported = now
            self.report("train", runner.iter + 1, runner.max_iters)

    def after_train_epoch(self, runner: Any) -> None:
        self.facts.train_seconds += time.perf_counter() - self._clock
        model = distiller_of(runner)
        self.facts.teacher_forwards += model.teacher_forwards * runner.world_size
        model.teacher_forwards = 0


class SelectHook(Hook):
    """Keeps the weights that validation likes best, where the recipe selects by 'best_val'."""

    priority = "NORMAL"

    def __init__(self, facts: Facts, metric: str, higher_is_better: bool, keep: bool) -> None:
        self.facts, self.metric, self.sign, self.keep = facts, metric, (1 if higher_is_better else -1), keep
        self.state: dict[str, torch.Tensor] | None = None

    def after_val_epoch(self, runner: Any, metrics: dict[str, float] | None = None) -> None:
        values = {k.rsplit("/", 1)[-1]: float(v) for k, v in (metrics or {}).items()}
        if self.metric not in values:
            raise ConfigError(
                f"the metric gives {sorted(values)}, not {self.metric!r}; name one of them as metric.primary"
            )
        self.facts.last_val = values
        best = self.facts.best.get(self.metric)
        if best is None or self.sign * values[self.metric] > self.sign * best:
            self.facts.best = values
            if self.keep:
                state = distiller_of(runner).deploy.state_dict()
                self.state = {k: v.detach().clone() for k, v in state.items()}

    def before_save_checkpoint(self, runner: Any, checkpoint: dict[str, Any]) -> None:
        checkpoint["best_state"] = self.state

    def after_load_checkpoint(self, runner: Any, checkpoint: dict[str, Any]) -> None:
        self.state = checkpoint.get("best_state")


class TeacherCheckHook(Hook):
    """Guard 1: a frozen member reaches on validation what its card or record says, or the run does not start."""

    priority = "HIGH"

    def __init__(self, measure: Callable[[torch.nn.Module], dict[str, float]]) -> None:
        self.measure = measure

    def before_train(self, runner: Any) -> None:
        model = distiller_of(runner)
        for name, member in model.frozen.items():
            spec = model.specs[name]
            if not spec.expected:
                continue
            found = self.measure(member)
            for key, want in spec.expected.items():
                if key not in found or abs(found[key] - want) > spec.tolerance:
                    raise TeacherOff(
                        f"frozen member {name!r} has {key} {found.get(key, float('nan')):.2f} on validation, "
                        f"its card says {want:.2f} "
                        f"(tolerance {spec.tolerance}); check its weights and preprocessing"
                    )


class ResumeHook(Hook):
    """Saves after every epoch what an exact resume needs; the file is whole or absent, and its hash is checked.

    The checkpoint holds trained members, bridges and memory banks, optimiser, schedulers, EMA members, random states
    and the run's facts; never a frozen member. It is of before the epoch's validation, which a resumed run makes
    again: what it chooses, settles and notes is in no checkpoint yet.
    """

    priority = "VERY_LOW"

    def __init__(self, folder: Path, facts: Facts, config_hash: str) -> None:
        self.folder, self.facts, self.config_hash = folder, facts, config_hash
        self._random: dict[str, Any] | None = None

    def after_train_epoch(self, runner: Any) -> None:
        states = _gather_random_states()
        if runner.rank:
            return
        self._states = states
        name = f"epoch{runner.epoch + 1}.pth"
        old = last_checkpoint(self.folder, self.config_hash)
        runner.save_checkpoint(str(self.folder), name)
        path = self.folder / name
        write_json(
            self.folder / "last.json",
            dict(file=name, sha256=sha256_file(path), epoch=runner.epoch + 1, config_hash=self.config_hash),
        )
        if old is not None and old != path:
            old.unlink(missing_ok=True)

    def before_save_checkpoint(self, runner: Any, checkpoint: dict[str, Any]) -> None:
        model = distiller_of(runner)
        checkpoint["shadows"] = model.shadow_state()
        checkpoint["random"] = self._states
        checkpoint["facts"] = dict(vars(self.facts))
        checkpoint["alive"] = sorted(model._alive)
        # log.jsonl has the history; mmengine's own grows with every step and is no plain data
        checkpoint["message_hub"] = dict(log_scalars={}, runtime_info={}, resumed_keys={})

    def after_load_checkpoint(self, runner: Any, checkpoint: dict[str, Any]) -> None:
        model = distiller_of(runner)
        model.load_shadow_state(checkpoint["shadows"])
        model._alive = set(checkpoint["alive"])
        vars(self.facts).update(checkpoint["facts"])
        self._random = checkpoint["random"][runner.rank]

    def before_train(self, runner: Any) -> None:
        if self._random is None:
            return
        _set_random_state(self._random)
        loop = runner.train_loop
        if loop.epoch % loop.val_interval == 0 or loop.epoch == loop.max_epochs:
            runner.val_loop.run()


def last_checkpoint(folder: Path, config_hash: str, *, drop_other: bool = False) -> Path | None:
    """The newest whole checkpoint of a run, or None.

    Args:
        drop_other: forget one that belongs to another config, as a suite does whose config has changed.
    Raises: CorruptFile when it is damaged; ConfigError when it belongs to another config.
    """
    pointer = folder / "last.json"
    if not pointer.is_file():
        return None
    try:
        said = json.loads(pointer.read_text())
        path, expected, owner = folder / said["file"], said["sha256"], said["config_hash"]
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise CorruptFile(f"{pointer}: not whole ({error}); delete {folder} to start anew") from error
    if owner != config_hash and drop_other:
        pointer.unlink()
        return None
    if owner != config_hash:
        raise ConfigError(f"{folder} holds an unfinished run of another config; choose another folder or pass --fresh")
    if not path.is_file():
        raise CorruptFile(f"{path}: missing, expected sha256 {expected[:12]}…; delete {folder} to start anew")
    found = sha256_file(path)
    if found != expected:
        raise CorruptFile(f"{path}: sha256 is {found[:12]}…, expected {expected[:12]}…; delete {folder} to start anew")
    return path


def _length(data: Any) -> int:
    samples = data.get("data_samples")  # OpenMMLab's loaders give a list of samples, and for points a dict of inputs
    return len(samples) if isinstance(samples, (list, tuple)) else len(data["inputs"])


def _random_state() -> dict[str, Any]:
    kind, keys, position, has_gauss, cached = np.random.get_state()
    return dict(
        python=random.getstate(),
        numpy=(kind, torch.from_numpy(np.asarray(keys).astype(np.int64)), position, has_gauss, cached),
        torch=torch.get_rng_state(),
        cuda=torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    )


def _gather_random_states() -> list[dict[str, Any]]:
    from mmengine.dist import all_gather_object

    return all_gather_object(_random_state())


def _set_random_state(state: dict[str, Any]) -> None:
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    kind, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), position, has_gauss, cached))
    torch.set_rng_state(state["torch"].cpu())
    for index, value in enumerate(state["cuda"]):
        torch.cuda.set_rng_state(value.cpu(), index)
