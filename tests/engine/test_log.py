"""log.jsonl and the record's curves: means of the steps as they were, and the same after any interruption."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mmengine.hooks import Hook

from limbeck.engine.log import _mean_of
from limbeck.engine.record import RunRecord, read_record, record_path
from limbeck.engine.run import RunOptions, execute
from tests.engine.toys import toy_run

RECIPE: dict[str, Any] = dict(
    epochs=5,
    optimizer=dict(type="SGD", lr=0.05, momentum=0.9),
    param_scheduler=[dict(type="CosineAnnealingLR")],
    val_interval=2,
)
DROPOUT = dict(student=dict(type="ToyNet", width=2, dropout=0.3, norm=True))


class Watch(Hook):
    """Writes down what every step returned and at what rate it was made."""

    priority = "LOWEST"

    def __init__(self) -> None:
        self.rates: list[float] = []
        self.terms: dict[str, list[float]] = defaultdict(list)

    def before_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None) -> None:
        self.rates.append(runner.optim_wrapper.get_lr()["lr"][0])

    def after_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        for key, value in outputs.items():
            self.terms[key].append(value.item())


class Stop(Hook):
    """Interrupts a run: before a step, or before or after the n-th validation."""

    priority = "LOWEST"

    def __init__(self, where: str, at: int) -> None:
        self.where, self.at, self.seen = where, at, 0

    def before_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None) -> None:
        if self.where == "step" and runner.iter == self.at:
            raise KeyboardInterrupt

    def before_val_epoch(self, runner: Any) -> None:
        self.seen += 1
        if self.where == "before" and self.seen == self.at:
            raise KeyboardInterrupt

    def after_val_epoch(self, runner: Any, metrics: dict[str, float] | None = None) -> None:
        if self.where == "after" and self.seen == self.at:
            raise KeyboardInterrupt


def options(folder: Path, name: str, **kwargs: Any) -> RunOptions:
    return RunOptions(out=folder / name, records=folder / f"{name}-records", threads=1, latency_ms=1.0, **kwargs)


def made(run: Any, wanted: RunOptions) -> RunRecord:
    record = execute(run, wanted)
    assert record is not None
    return record


def six(values: Any) -> list[float]:
    return [float(f"{v:.6g}") for v in values]


def test_curves_are_the_means_of_the_steps_and_the_rate_of_the_last(tmp_path):
    run = toy_run(tmp_path, "ToyBridge", recipe=RECIPE)
    watch = Watch()
    record = made(run, options(tmp_path, "runs", hooks=[watch]))
    found = record.history
    assert found is not None
    assert found == read_record(record_path(tmp_path / "runs-records", run.id)).history
    assert found.epochs == [1, 2, 3, 4, 5]
    assert set(found.losses) == {"loss", "student.loss_ce", "toybridge.loss_hint"} == set(watch.terms)
    for name, values in watch.terms.items():  # float32 sums here, float64 there
        want = np.reshape(values, (5, 4)).mean(1)
        np.testing.assert_allclose(np.array(found.losses[name], float), want, rtol=1e-5)
    assert found.learning_rate == six(np.reshape(watch.rates, (5, 4))[:, -1])
    assert found.learning_rate[-1] == six([record.recipe.learning_rate_last])[0]
    assert found.val_epochs == [2, 4, 5]  # every second, and the last
    lines = [json.loads(line) for line in (tmp_path / "runs" / run.id / "log.jsonl").read_text().splitlines()]
    assert found.val_metrics == {"top1": six(line["val"]["top1"] for line in lines if "val" in line)}
    assert found.losses["loss"] == six(line["loss"] for line in lines if "loss" in line)


@pytest.mark.parametrize("where", [("step", 1), ("step", 9), ("before", 1), ("after", 1), ("before", 3), ("after", 3)])
def test_interrupted_run_has_the_same_curves_log_and_choice(tmp_path, where):
    run = toy_run(tmp_path, "ToyBridge", recipe=dict(RECIPE, selection="best_val"), **DROPOUT)
    straight = made(run, options(tmp_path, "straight"))
    with pytest.raises(KeyboardInterrupt):
        execute(run, options(tmp_path, "cut", hooks=[Stop(*where)]))
    resumed = made(run, options(tmp_path, "cut"))
    assert resumed.history == straight.history
    assert (resumed.student_sha256, resumed.metrics) == (straight.student_sha256, straight.metrics)
    first, second = ((tmp_path / name / run.id / "log.jsonl").read_text() for name in ("straight", "cut"))
    assert first == second


def test_the_epoch_that_validation_chose_survives_an_interruption(tmp_path, monkeypatch):
    """The validation after a checkpoint chose the best epoch, and the next epoch was cut: it is chosen again."""
    import limbeck.engine.run as module

    said = {1: 90.0, 2: 80.0, 3: 70.0}
    run = toy_run(tmp_path, "plain", recipe=dict(RECIPE, epochs=3, val_interval=1, selection="best_val"))

    class Falling(module.SelectHook):
        def after_val_epoch(self, runner: Any, metrics: dict[str, float] | None = None) -> None:
            super().after_val_epoch(runner, {"top1": said[runner.epoch]})

    monkeypatch.setattr(module, "SelectHook", Falling)
    straight = made(run, options(tmp_path, "straight"))
    with pytest.raises(KeyboardInterrupt):
        execute(run, options(tmp_path, "cut", hooks=[Stop("step", 6)]))
    resumed = made(run, options(tmp_path, "cut"))
    assert resumed.student_sha256 == straight.student_sha256
    assert resumed.history == straight.history
    assert straight.history is not None
    assert straight.history.val_metrics == {"top1": [90.0, 80.0, 70.0]}


def test_a_term_that_a_process_did_not_have_counts_as_zero_there():
    assert _mean_of([{"loss": 3.0, "a": 1.0}, {"loss": 1.0}]) == {"loss": 2.0, "a": 0.5}
