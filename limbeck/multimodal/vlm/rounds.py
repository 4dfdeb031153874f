"""Rounds of active learning in a folder: which images are labelled, a student a round, and what to label next.

`<folder>/rounds/<r>/` has `asked.json`, the images chosen for round r (not of round 0 where the config labels some),
`labels.json`, all labels that round r may read, and the run and record of the student that was trained on them. A file
is whole or not there, so that a loop goes on where it was interrupted.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from torch import nn

from limbeck.engine.config import TEACHER, RunConfig
from limbeck.engine.evaluate import build_dataset, eval_loader, without_pretrained
from limbeck.engine.loop import finished, options_of_round
from limbeck.engine.prepare import unaugmented
from limbeck.engine.record import RunRecord
from limbeck.engine.registry import ADAPTERS, MODELS
from limbeck.engine.run import STUDENT_FILE, RunOptions, execute
from limbeck.engine.selection import Pool, Progress, Strategy
from limbeck.engine.weights import check_sha256, load_into, write_json
from limbeck.errors import ConfigError
from limbeck.multimodal.vlm._tables import tables_of
from limbeck.multimodal.vlm.coverage import coverage_of

if TYPE_CHECKING:
    from limbeck.engine.adapter import TaskAdapter


class Rounds:
    """The state of one loop.

    Args:
        config: of the run, with `loop`.
        folder: of the run.
        passes: updates of a round, in passes over its labelled images; 0 takes the config's `steps`.
        refit, teacher_lag: see `ActiveLearning`.
    Raises: ConfigError for training data that is not partly labelled, or a teacher that cannot be fitted.
    """

    def __init__(
        self,
        config: RunConfig,
        options: RunOptions,
        folder: Path,
        *,
        passes: int = 0,
        refit: bool = False,
        teacher_lag: int = 0,
    ) -> None:
        if config.data.train.get("type") != "PartlyLabelled":
            raise ConfigError(f"{config.method}: active learning needs data.train of type PartlyLabelled")
        self.config, self.options, self.folder, self.passes = config, options, folder, passes
        frozen = {n: m for n, m in config.model["members"].items() if m["type"] == "frozen"}
        if refit and frozen and (list(frozen) != [TEACHER] or "support" not in frozen[TEACHER]["model"]):
            said = ", ".join(f"{name} ({m['model'].get('type')})" for name, m in frozen.items())
            raise ConfigError(f"{config.method}: loop.refit is of one few-shot teacher, such as CLAP; there is {said}")
        self.refit, self.teacher_lag = refit and bool(frozen), teacher_lag
        self.starts_fitted = any(m.get("weights") for m in frozen.values())

    def place(self, number: int) -> Path:
        """The folder of a round."""
        return self.folder / "rounds" / str(number)

    # --- labels ---

    def asked(self, number: int) -> np.ndarray | None:
        """Ids that were chosen to be labelled for a round; None before they are."""
        found = _read(self.place(number) / "asked.json")
        return None if found is None else np.asarray(found["ids"], np.int64)

    def labels(self, number: int) -> tuple[np.ndarray, np.ndarray] | None:
        """All labelled ids of a round and their labels, (L,) each; None before they are known."""
        found = _read(self.place(number) / "labels.json")
        return None if found is None else (np.asarray(found["ids"], np.int64), np.asarray(found["labels"], np.int64))

    def ask(self, number: int, ids: np.ndarray, **facts: Any) -> None:
        """Write down what is to be labelled for a round."""
        write_json(self.place(number) / "asked.json", dict(ids=ids.tolist(), **facts))

    def label(self, number: int, ids: np.ndarray, labels: np.ndarray) -> None:
        """Write down the labels of the asked ids, beside those of the round before."""
        before = self.labels(number - 1) if number else None
        if before is not None:
            ids, labels = np.concatenate([before[0], ids]), np.concatenate([before[1], labels])
        write_json(self.place(number) / "labels.json", dict(ids=ids.tolist(), labels=labels.tolist()))

    # --- a round ---

    def config_of(self, number: int) -> RunConfig:
        """The config of a round's run: the same initial weights and recipe every time, and the labels so far.

        Raises: ConfigError before the round has labels, or its teacher is fitted.
        """
        config, source = self._on_labels(number), self.taught_on(number)
        if source is None:
            return config
        found = self.fitted(source)
        if found is None:
            raise ConfigError(f"{self.place(source)}: the teacher of round {number} is not fitted yet")
        member = {
            **config.model["members"][TEACHER],
            "model": {**self.fit_config(source).deployed, "pretrained": False},
            "weights": f"run://{found.id}",
            "sha256": found.student_sha256,
            "expected": {config.metric.primary: found.val_metrics[config.metric.primary]},
        }
        members = {**config.model["members"], TEACHER: member}
        return config.model_copy(update=dict(model={**config.model, "members": members}))

    def taught_on(self, number: int) -> int | None:
        """The round on whose labels this round's teacher is fitted; None where it is the run's own teacher."""
        source = max(number - self.teacher_lag, 0)
        return source if self.refit and (source or not self.starts_fitted) else None

    def fit_config(self, number: int) -> RunConfig:
        """The config of the run that fits the teacher anew, to all labels of a round."""
        config = self._on_labels(number)
        model = config.model["members"][TEACHER]["model"]
        fitted = {**model, "pretrained": True, "support": len(config.data.train["labelled"])}
        alone = dict(
            type="Distiller",
            members=dict(student=dict(type="trained", model=fitted)),
            deploy="student",
            adapter=config.model["adapter"],
            links=[],
            task_weight=1.0,
        )
        recipe = config.recipe.model_copy(update=dict(epochs=0))
        return config.model_copy(
            update=dict(method=TEACHER, model=alone, recipe=recipe, cache=None, companions={}),
        )

    def _on_labels(self, number: int) -> RunConfig:
        known = self.labels(number)
        if known is None:
            raise ConfigError(f"{self.place(number)}: round {number} has no labels yet; submit those of its images")
        ids, labels = known
        data = self.config.data
        train = {k: v for k, v in data.train.items() if k not in ("shots", "shots_seed")}
        changes: dict[str, Any] = dict(train=train | dict(labelled=ids.tolist(), labels=labels.tolist()))
        if self.passes:
            steps = self.passes * len(ids) / (data.batch_size * self.config.recipe.epochs)
            changes["steps"] = max(round(steps), 1)
        return self.config.model_copy(update=dict(loop={}, data=data.model_copy(update=changes)))

    def record(self, number: int) -> RunRecord | None:
        """A round's record where it is of this config; None where the round has to be trained."""
        source = self.taught_on(number)
        if self.labels(number) is None or (source is not None and self.fitted(source) is None):
            return None
        return finished(self.config_of(number), self.place(number))

    def fitted(self, number: int) -> RunRecord | None:
        """The record of the teacher that was fitted to a round's labels; None where it has to be."""
        return finished(self.fit_config(number), self.place(number))

    def weights(self, number: int) -> Path:
        """The file of a round's student."""
        return self.place(number) / "runs" / self.config.id / STUDENT_FILE

    def teachers(self, rounds: int) -> list[RunRecord]:
        """The records of the teachers that were fitted for this many rounds, each once."""
        sources = dict.fromkeys(self.taught_on(number) for number in range(rounds))
        return [r for s in sources if s is not None and (r := self.fitted(s)) is not None]

    def train(self, number: int, rounds: int, *, last: bool = True) -> RunRecord:
        """Train and evaluate a round's student, unless that is done.

        Args:
            rounds: how many there will be, for the progress.
            last: False measures no latency and saves no predictions.
        """
        found = self.record(number)
        if found is not None:
            return found

        def inside(place: Path, *, latency: bool) -> RunOptions:
            options = options_of_round(self.options, place, number, rounds)
            return options if latency else replace(options, latency_ms=0.0, predictions=False)

        source, options = self.taught_on(number), inside(self.place(number), latency=last)
        if source is not None:
            options = replace(options, teachers=self.place(source) / "runs")
            if self.fitted(source) is None:
                execute(self.fit_config(source), inside(self.place(source), latency=False))
        record = execute(self.config_of(number), options)
        assert record is not None  # one process alone runs a loop
        return record

    # --- what the student says of the pool ---

    def student(self, number: int) -> nn.Module:
        """A round's trained student, ready to predict."""
        record = self.record(number)
        if record is None:
            raise ConfigError(f"{self.place(number)}: round {number} is not trained yet")
        model = cast(nn.Module, MODELS.make(without_pretrained(self.config.deployed)))
        check_sha256(self.weights(number), record.student_sha256)
        load_into(model, self.weights(number))
        return model.to(self.options.device).eval()

    @cached_property
    def images(self) -> Any:
        """The pool without augmentation, the same in every round; its labels are round 0's."""
        return build_dataset(unaugmented(self.config_of(0).data), "train")

    def pool(self, number: int, needs: frozenset[str]) -> Pool:
        """The pool as a round's student sees it, without augmentation: what of it a strategy needs."""
        known = self.labels(number)
        assert known is not None  # the round is trained
        tables: Mapping[str, np.ndarray] = {}
        if needs:
            loader = eval_loader(self.config.data, "train", self.images)
            tables = tables_of(self.student(number), self._adapter(), loader, self.place(number), needs)
        return Pool(
            probabilities=tables.get("probabilities"),
            features=tables.get("features"),
            labelled=known[0],
            labels=known[1],
            unlabelled=np.setdiff1d(np.arange(len(self.images)), known[0]),
        )

    def probabilities(self, number: int, ids: np.ndarray) -> np.ndarray:
        """What a round's student says of some images, (n, K)."""
        batch = [self.images.__getitems__(ids)]
        needs = frozenset({"probabilities"})
        return tables_of(self.student(number), self._adapter(), batch, self.place(number), needs, len(ids))[
            "probabilities"
        ]

    def _adapter(self) -> TaskAdapter:
        return cast("TaskAdapter", ADAPTERS.make(self.config.model["adapter"]))

    def choose(self, number: int, strategy: Strategy, budget: int, classes: int) -> np.ndarray:
        """Choose what to label for a round by the student of the round before, and write it down.

        The run's progress is told of the images compared and of the picks.

        Args:
            budget: how many; all that are left where there are fewer.
        Returns: ids in order of choice.
        """
        pool = self.pool(number - 1, strategy.needs)
        count = min(budget, len(pool.unlabelled))
        ids = strategy.choose(pool, count, seed=(self.config.seed, number), progress=self._choosing(number))
        facts = coverage_of(pool, classes)
        self.ask(number, ids, strategy=type(strategy).__name__, before=facts)
        return ids

    def _choosing(self, number: int) -> Progress | None:
        tell = self.options.progress
        if tell is None:
            return None
        return lambda done, total, unit: tell(f"round {number + 1}: choosing, {unit}", done, total)


def _read(path: Path) -> dict[str, Any] | None:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
