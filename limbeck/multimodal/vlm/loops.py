"""ActiveKD: rounds of distilling with the labels so far and choosing what to label next (arXiv 2506.00910, §3)."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np

from limbeck.engine.config import RunConfig
from limbeck.engine.evaluate import build_dataset
from limbeck.engine.loop import Loop, record_of_rounds
from limbeck.engine.prepare import unaugmented
from limbeck.engine.record import RunRecord, write_record
from limbeck.engine.registry import LOOPS, STRATEGIES
from limbeck.engine.run import STUDENT_FILE, RunOptions
from limbeck.engine.saved_predictions import copy_predictions
from limbeck.engine.selection import Strategy
from limbeck.engine.shared_data import make_dataset, shared_data
from limbeck.engine.weights import copy_file
from limbeck.errors import ConfigError
from limbeck.multimodal.vlm.coverage import area_under_curve, class_coverage
from limbeck.multimodal.vlm.oracle import KnownLabels
from limbeck.multimodal.vlm.rounds import Rounds


@LOOPS.register_module()
class ActiveLearning(Loop):
    """Train a student, let it choose images, reveal their labels, train a new student; `rounds` times.

    Round 0 trains on what the config's data labels; each further one on `budget` images more. Every student starts from
    the same initial weights, by the run's seed (ASSUMPTION: the official code initialises anew), and the last epoch is
    kept. The labels of a benchmark's images are revealed when they are chosen, and not before.

    The record is the last round's, with the whole config; its cost is that of all rounds, and its training data that of
    round 0, which strategies share. Of the primary metric, here top1, it has beside the usual figures `top1@N` for the
    N labels of each round, `aulc`, the area under that curve divided by its range of N, and `covered@N`, the classes
    that have a label.

    Args:
        strategy: how images are chosen: dict(type='PCoreSet'); see `limbeck.multimodal.vlm.strategies`.
        rounds: how often images are chosen; there is one student more.
        budget: images a round; 0 is one for each class.
        passes: updates of a round, in passes over its labelled images, as the official code counts (200 of them);
            0 takes the data config's `steps`, the same in every round.
        refit: fit a few-shot teacher, such as CLAP, anew to the labels of every round; False keeps the run's teacher,
            fitted to what the config labels.
        teacher_lag: with refit, the student of round r learns from a teacher of the labels of round r − teacher_lag.
            The official code for small sets fits it after the student: 1.
    Raises: ConfigError for numbers that are negative, or a budget beyond the pool.
    """

    def __init__(
        self,
        strategy: Mapping[str, Any],
        rounds: int,
        budget: int = 0,
        passes: int = 0,
        refit: bool = False,
        teacher_lag: int = 0,
    ) -> None:
        if rounds < 1 or budget < 0 or passes < 0 or teacher_lag < 0:
            raise ConfigError(
                "active learning has rounds of 1 or more, and budget, passes and teacher_lag of 0 or more; got "
                f"rounds={rounds}, budget={budget}, passes={passes}, teacher_lag={teacher_lag}"
            )
        self.strategy = cast(Strategy, STRATEGIES.make(strategy, where="of active learning"))
        self.rounds, self.budget, self.passes = rounds, budget, passes
        self.refit, self.teacher_lag = refit, teacher_lag

    def rounds_of(self, config: RunConfig, options: RunOptions, folder: Path) -> Rounds:
        """The state of a loop with these settings."""
        return Rounds(config, options, folder, passes=self.passes, refit=self.refit, teacher_lag=self.teacher_lag)

    def run(self, config: RunConfig, options: RunOptions, folder: Path) -> RunRecord:
        """See the class; rounds that are done are not repeated. Data sets are read and decoded once for all rounds."""
        with shared_data():
            return self._run(config, options, folder)

    def _run(self, config: RunConfig, options: RunOptions, folder: Path) -> RunRecord:
        rounds = self.rounds_of(config, options, folder)
        dataset = build_dataset(unaugmented(config.data), "train")  # as the rounds' pool, so decoded once
        classes = len(dataset.classes)
        budget = self.budget or classes
        left = len(dataset) - len(dataset.labelled)
        if budget * self.rounds > left:
            raise ConfigError(
                f"{config.method}: {self.rounds} rounds of {budget} images are more than the {left} unlabelled ones; "
                "lower loop.rounds or loop.budget"
            )
        _start(rounds, dataset.labelled, dataset.labels[dataset.labelled])
        oracle = KnownLabels(_truth(config, dataset.pool_ids))
        records: list[RunRecord] = []
        for number in range(self.rounds + 1):
            if rounds.labels(number) is None:
                ids = rounds.asked(number)
                if ids is None:
                    ids = rounds.choose(number, self.strategy, budget, classes)
                oracle.choose(ids)
                rounds.label(number, ids, oracle.reveal(ids))
            records.append(rounds.train(number, self.rounds + 1, last=number == self.rounds))
        known = [cast(tuple[np.ndarray, np.ndarray], rounds.labels(n))[1] for n in range(self.rounds + 1)]
        counts = [len(labels) for labels in known]
        covered = [float(class_coverage(labels, classes).covered) for labels in known]
        record = whole(config, records, counts, covered, rounds.teachers(self.rounds + 1))
        copy_file(rounds.weights(self.rounds), folder / STUDENT_FILE)
        copy_predictions(rounds.weights(self.rounds).parent, folder)
        if options.records is not None:
            write_record(options.records, record)
        return record


def whole(
    config: RunConfig,
    records: list[RunRecord],
    counts: list[int],
    covered: list[float],
    teachers: Sequence[RunRecord] = (),
) -> RunRecord:
    """The record of a loop, from those of its rounds.

    Args:
        counts: labels of each round. covered: classes with a label.
        teachers: that were fitted on the way; their seconds count.
    """
    first, last = records[0], records[-1]
    curve = [record.value for record in records]
    name = last.primary_metric
    metrics = last.metrics | {"aulc": area_under_curve(counts, curve)}
    metrics |= {f"{name}@{count}": value for count, value in zip(counts, curve)}
    metrics |= {f"covered@{count}": value for count, value in zip(counts, covered)}
    found = record_of_rounds(config, records, metrics=metrics, data=first.data)
    seconds = found.cost.train_seconds + sum(record.cost.train_seconds for record in teachers)
    return found.model_copy(update=dict(cost=found.cost.model_copy(update=dict(train_seconds=seconds))))


def _start(rounds: Rounds, ids: np.ndarray, labels: np.ndarray) -> None:
    """Label what the config labels; a loop whose start was another one begins anew."""
    known = rounds.labels(0)
    if known is None or not (np.array_equal(known[0], ids) and np.array_equal(known[1], labels)):
        shutil.rmtree(rounds.place(0).parent, ignore_errors=True)
        rounds.label(0, ids, labels)


def _truth(config: RunConfig, pool: np.ndarray) -> np.ndarray:
    """Labels (N,) of all images of the pool: read apart, so that no training set has them."""
    train = unaugmented(config.data).train
    base: Any = make_dataset({"split": train.get("split", "train"), **train["of"]}, where="in data.train.of")
    labels = np.asarray(base.labels, np.int64)[pool]
    if (labels < 0).any():
        raise ConfigError(
            f"{config.method}: images of {base.name} have no labels to reveal; give them by hand, round by round: "
            "limbeck active next CONFIG"
        )
    return labels
