"""Rounds of halving: progressive distillation from many steps to few (arXiv 2202.00512, algorithm 2)."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

from limbeck.engine.config import RunConfig
from limbeck.engine.distiller import Distiller
from limbeck.engine.evaluate import eval_loader, evaluate
from limbeck.engine.loop import Loop, finished, options_of_round, record_of_rounds
from limbeck.engine.output import pick_device
from limbeck.engine.predictions import PredictionCache
from limbeck.engine.record import RunRecord, config_hash, write_record
from limbeck.engine.registry import LOOPS
from limbeck.engine.run import STUDENT_FILE, RunOptions, execute
from limbeck.engine.saved_predictions import PREDICTIONS_FILE, PredictionRecorder, copy_predictions
from limbeck.engine.weights import copy_file, load_into
from limbeck.errors import ConfigError


@LOOPS.register_module()
class Halving(Loop):
    """Train a student of start/2 steps, then one of start/4 that learns from it, down to the config's own steps.

    The recipe's epochs are those of all rounds together, so that a row of halvings costs what another method's run
    does. They are split evenly; what is left over goes to the last rounds, one epoch each (the paper trains the rounds
    to two steps and to one for longer). Every round begins the rate's schedule anew, with a new optimiser. Rounds that
    are done are not repeated. The record is the last round's, with the whole config, the first teacher, and the epochs,
    steps and cost of all rounds; what its metrics say of a teacher is said of the first one.

    Args:
        start: steps of the first teacher; the last student's times a power of 2.
    Raises: ConfigError for steps that halving does not lead to, or fewer epochs than rounds.
    """

    def __init__(self, start: int) -> None:
        self.start = start

    def run(self, config: RunConfig, options: RunOptions, folder: Path) -> RunRecord:
        """See the class."""
        rounds = self.rounds(config)
        if config.recipe.epochs < len(rounds):
            raise ConfigError(
                f"{config.method}: {config.recipe.epochs} epochs are fewer than its {len(rounds)} halvings; "
                f"set recipe.epochs to {len(rounds)} or more"
            )
        records: list[RunRecord] = []
        for number, steps in enumerate(rounds):
            records.append(self.round(config, options, folder, number, steps, records, len(rounds)))
        first, last = records[0], records[-1]
        copy_file(self.weights(config, folder, len(rounds) - 1), folder / STUDENT_FILE)
        steps = sum(record.recipe.steps for record in records)
        figures, predictions = dict(last.metrics), last.predictions_sha256
        if len(rounds) > 1:
            more, predictions = self.beside_first_teacher(config, options, folder)
            figures |= more
        else:
            copy_predictions(self.weights(config, folder, 0).parent, folder)
        record = record_of_rounds(
            config,
            records,
            teacher=first.teacher,
            teacher_record=first.teacher_record,
            initial_hash=first.initial_hash,
            metrics=figures,
            predictions_sha256=predictions,
            recipe=last.recipe.model_copy(update=dict(epochs=config.recipe.epochs, steps=steps)),
        )
        if options.records is not None:
            write_record(options.records, record)
        return record

    def rounds(self, config: RunConfig) -> list[int]:
        """The students' steps, falling to the config's own."""
        last = int(config.deployed.get("sampler", {}).get("steps", 0))
        found = []
        steps = self.start
        while last and steps % 2 == 0 and steps > last:
            steps //= 2
            found.append(steps)
        if not found or found[-1] != last:
            raise ConfigError(
                f"{config.method}: halving {self.start} steps does not lead to the student's {last}; set loop.start to "
                "its steps times a power of 2"
            )
        return found

    def round(
        self,
        config: RunConfig,
        options: RunOptions,
        folder: Path,
        number: int,
        steps: int,
        before: list[RunRecord],
        rounds: int,
    ) -> RunRecord:
        """The student of one halving, trained now where it is missing."""
        whole, left = divmod(config.recipe.epochs, rounds)
        run = self.inner(config, number, steps, before, whole + (number >= rounds - left))
        place = folder / "rounds" / str(number)
        if (found := finished(run, place)) is not None:
            return found
        inner = options_of_round(options, place, number, rounds)
        if rounds > 1:
            inner = replace(inner, predictions=False)  # those beside the first teacher are saved
        if number:
            inner = replace(inner, teachers=folder / "rounds" / str(number - 1) / "runs")
        record = execute(run, inner)
        assert record is not None  # one process alone runs a loop
        return record

    def beside_first_teacher(
        self, config: RunConfig, options: RunOptions, folder: Path
    ) -> tuple[dict[str, float], str | None]:
        """The test figures of the last student, with those of how near it is to the run's own teacher.

        Returns: the figures; the sha256 of the predictions that they are of, None where these are not saved.
        """
        parts = {key: value for key, value in deepcopy(config.model).items() if key != "type"}
        model = Distiller(**parts, seed=config.seed, runs=options.teachers or options.out)
        load_into(model.deploy, folder / STUDENT_FILE)
        model.to(pick_device(options.device))
        metric = PredictionRecorder(config.metric.build())
        figures = evaluate(
            model.deploy,
            adapter=model.adapter,
            loader=eval_loader(config.data, "test"),
            metric=metric if options.predictions else metric.metric,
            preprocessor=model.data_preprocessor,
            teacher=model.frozen["teacher"],
            cache=None if options.cache is None else PredictionCache(options.cache, model),
        )
        digest = config_hash(config.model_dump(mode="json"))
        return figures, metric.save(folder / PREDICTIONS_FILE, id=config.id, config_hash=digest)

    def weights(self, config: RunConfig, folder: Path, number: int) -> Path:
        """The file of a round's student."""
        return folder / "rounds" / str(number) / "runs" / config.id / STUDENT_FILE

    def inner(self, config: RunConfig, number: int, steps: int, before: list[RunRecord], epochs: int) -> RunConfig:
        """The run of one round: the round before is its teacher, without guidance, which that has learnt.

        It names no folder, so that a row of halvings gives one and the same file wherever it is made.
        """
        value: dict[str, Any] = config.model_dump()
        value.pop("loop", None)
        value["recipe"]["epochs"] = epochs
        members, links = value["model"]["members"], value["model"]["links"]
        student = members["student"]["model"]
        student["sampler"] = {**student.get("sampler", {}), "steps": steps}
        links[0]["steps"] = steps
        if number:
            taught = {**student, "sampler": {**student["sampler"], "steps": 2 * steps}}
            members["teacher"] = dict(
                type="frozen",
                model=taught,
                weights=f"run://{config.id}",
                sha256=before[-1].student_sha256,
                expected=None,
            )
            links[0]["guidance"] = 1.0
        return RunConfig.model_validate(value)
