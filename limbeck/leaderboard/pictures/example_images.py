"""Example images: which samples of a test split are shown, and what each member makes of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import nn
from torch.utils.data import Subset

from limbeck.engine.adapter import TaskAdapter
from limbeck.engine.config import PLAIN, RunConfig, parse
from limbeck.engine.evaluate import build_dataset, eval_loader, without_pretrained
from limbeck.engine.record import RunRecord
from limbeck.engine.registry import ADAPTERS, MODELS
from limbeck.engine.weights import load_into
from limbeck.errors import ConfigError, CorruptFile
from limbeck.leaderboard.pictures.examples import BEST, DRAW_SEED, Chosen


@dataclass(frozen=True)
class Shown:
    """A chosen sample.

    data: the loader's batch of this sample alone, before preprocessing.
    predictions: what the task's adapter gives for that batch, by member.
    metrics: the figures of each member on this sample alone; empty where it has none.
    """

    sample: int
    chosen: Chosen
    data: Mapping[str, Any]
    predictions: Mapping[str, list[Any]]
    metrics: Mapping[str, dict[str, float]]


class Comparison:
    """The members of a picture on the plain student's test split, one sample at a time, on the CPU.

    Args:
        records: by member; 'plain' and 'best' are among them.
        weights: their files; each is checked against its record's sha256 before it is read.
    Raises: CorruptFile when weights or the test split are not those of the records; ConfigError when a member tells
        other classes apart; DataMissing, ExtraMissing.

    Attributes:
        dataset: the test split.
        candidates: how many samples could be chosen; 0 before `chosen`.
    """

    def __init__(self, records: Mapping[str, RunRecord], weights: Mapping[str, Path]) -> None:
        plain = records[PLAIN]
        run = _run(plain)
        self.dataset = build_dataset(run.data, "test")
        if self.dataset.content_hash != plain.data.content_hash:
            raise CorruptFile(
                f"the test split of {plain.data.name} found here has hash {self.dataset.content_hash[:12]}…, that of "
                f"{plain.id} has {plain.data.content_hash[:12]}…; get the data that the record was made with"
            )
        self._data = run.data.model_copy(update=dict(eval_batch_size=1))
        self._adapter = cast(TaskAdapter, ADAPTERS.make(run.model["adapter"]))
        self._metric = run.metric.build()
        self._primary = run.metric.primary
        self._models = {member: self._load(record, weights[member]) for member, record in records.items()}
        self._preprocessors = {member: self._adapter.preprocessor(model) for member, model in self._models.items()}
        self.candidates = 0

    def _load(self, record: RunRecord, path: Path) -> nn.Module:
        model = cast(nn.Module, MODELS.make(without_pretrained(_run(record).deployed)))
        self._adapter.check_data(model, self.dataset)
        load_into(model, path, sha256=record.student_sha256)
        return model.eval()

    def chosen(self, count: int, report: Callable[[int, int], None]) -> list[Shown]:
        """The samples to show, see `choose`; both students look at the whole split for it.

        Raises: ConfigError when fewer than `count` samples have a figure.
        """
        total = len(self.dataset) + count
        differences: dict[int, float] = {}
        for sample, data in self._samples(range(len(self.dataset))):
            found = [self._figures(self._predict(member, data)).get(self._primary) for member in (PLAIN, BEST)]
            if found[0] is not None and found[1] is not None:
                differences[sample] = found[1] - found[0]
            report(sample + 1, total)
        self.candidates = len(differences)
        picked = choose(differences, count)
        shown = []
        for sample, data in self._samples(picked):
            predictions = {member: self._predict(member, data) for member in self._models}
            metrics = {member: self._figures(found) for member, found in predictions.items()}
            shown.append(Shown(sample, picked[sample], data, predictions, metrics))
            report(len(self.dataset) + len(shown), total)
        return shown

    def _samples(self, samples: range | Mapping[int, Any]) -> Iterator[tuple[int, dict[str, Any]]]:
        loader = eval_loader(self._data, "test", Subset(self.dataset, list(samples)))
        return zip(samples, loader, strict=True)

    @torch.no_grad()
    def _predict(self, member: str, data: Mapping[str, Any]) -> list[Any]:
        model = self._models[member]
        ready = cast(dict[str, Any], self._preprocessors[member](data, False))
        batch = self._adapter.batch(ready["inputs"], ready["data_samples"])
        return self._adapter.predict(model, batch.inputs, batch)

    def _figures(self, predictions: list[Any]) -> dict[str, float]:
        """The record's metric on one sample; empty where nothing in it counts, such as an image without labels."""
        self._metric.reset()
        self._metric.update(predictions)
        try:
            return self._metric.values()
        except ConfigError:
            return {}


def choose(differences: Mapping[int, float], count: int) -> dict[int, Chosen]:
    """Which samples to show, and why: first those drawn at random, then those where the two students differ most.

    Half of them, rounded up, are drawn with a fixed seed from all samples, whatever the students say; the others have
    the largest absolute differences among the rest.

    Args:
        differences: best − plain in the primary metric, by sample.
    Raises: ConfigError unless 1 ≤ count ≤ the number of samples.
    """
    if not 1 <= count <= len(differences):
        raise ConfigError(
            f"--count {count}: the test split has {len(differences)} images with a figure; ask for 1 to that many"
        )
    known = sorted(differences)
    drawn = np.random.default_rng(DRAW_SEED).permutation(len(known))[: count - count // 2]
    random = [known[place] for place in drawn.tolist()]
    rest = sorted(differences.keys() - set(random), key=lambda sample: (-abs(differences[sample]), sample))
    found: dict[int, Chosen] = dict.fromkeys(random, "random")
    found.update(dict.fromkeys(rest[: count // 2], "difference"))
    return found


def _run(record: RunRecord) -> RunConfig:
    return parse(RunConfig, dict(record.config), f"the config of {record.id}")
